"""Images in and out: anything Pillow opens → float arrays in -1…1 → Pillow or numpy again."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..core.errors import MRCError

MAX_PIXELS = 64_000_000  # refused before decoding; a 64-megapixel photograph takes 192 MB as RGB
MAX_SIDE = 4096  # of what is edited; self-attention grows with the square of the pixels
MULTIPLE = 64  # of both sides, in the released scripts
ImageLike = Image.Image | str | Path | np.ndarray


def load_image(image: ImageLike) -> Image.Image:
    """An upright RGB image from a path, a Pillow image or a uint8 array `[H, W]`, `[H, W, 3 or 4]`.

    EXIF rotation is applied; transparency is laid over white; 16-bit values are scaled to 8 bits.

    Raises:
        MRCError: not an image, damaged, or more than 64 megapixels.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise MRCError(f"image array is {image.dtype} {image.shape}; give uint8 [H, W], [H, W, 3] or [H, W, 4]")
        if not image.size:
            raise MRCError(f"image array is empty, {image.shape}; give at least one pixel")
        check_pixels(image.shape[1], image.shape[0], "image array")
        return to_rgb(Image.fromarray(image))
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                check_pixels(*opened.size, str(image))
                return to_rgb(opened)
        except FileNotFoundError:
            raise MRCError(f"{image} does not exist; give the path of an image") from None
        except UnidentifiedImageError:
            raise MRCError(f"{image} is not an image that Pillow can open; give a JPEG, PNG or WebP file") from None
        except Image.DecompressionBombError as error:
            raise MRCError(f"{image} is too large ({error}); resize it first") from None
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, MRCError):
                raise
            raise MRCError(f"{image} cannot be decoded ({error}); the file is damaged") from None
    if isinstance(image, Image.Image):
        check_pixels(*image.size, "image")
        try:
            return to_rgb(image)
        except (OSError, ValueError) as error:  # opened lazily: truncated, or closed since
            raise MRCError(f"the image cannot be decoded ({error}); open it again from a whole file") from None
    raise MRCError(f"image is a {type(image).__name__}; give a Pillow image, a path or a uint8 array")


def check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise MRCError(f"{name} has {width}×{height} pixels; the limit is {MAX_PIXELS:,}, resize it first")


def to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32) / (257 if image.mode.startswith("I") else 1)
        image = Image.fromarray(np.nan_to_num(values).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fitted_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Width and height as the released scripts choose them: longer side near `resolution`,
    both multiples of 64."""
    short, long = min(width, height), max(width, height)
    short_side = -(-short * resolution // (long * MULTIPLE)) * MULTIPLE  # rounded up
    factor = Fraction(short_side, short)
    fitted = [int(side * factor) // MULTIPLE * MULTIPLE for side in (width, height)]
    return fitted[0], fitted[1]


def fit(image: Image.Image, resolution: int, multiple: int) -> Image.Image:
    """Scale and crop to `fitted_size`; `resolution=0` keeps the image's own size.

    Raises:
        MRCError: a resolution below 64, or an own size that is no multiple of `multiple`.
    """
    if resolution == 0:
        if image.width % multiple or image.height % multiple:
            raise MRCError(
                f"the image is {image.width}×{image.height} and resolution=0 keeps its size; both sides must be "
                f"multiples of {multiple}, so resize it or give a resolution"
            )
        return image
    if not isinstance(resolution, int) or not MULTIPLE <= resolution <= MAX_SIDE:
        limits = f"{MULTIPLE} to {MAX_SIDE}"
        raise MRCError(
            f"resolution is {resolution!r}; give a whole number of pixels from {limits}, or 0 for the image's own size"
        )
    size = fitted_size(image.width, image.height, resolution)
    if max(size) > MAX_SIDE:
        raise MRCError(f"a {image.width}×{image.height} image would become {size[0]}×{size[1]}; crop it first")
    return ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)


def to_array(image: Image.Image) -> np.ndarray:
    """RGB image → float32 `[3, H, W]` in -1…1."""
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1


def to_unit(array: np.ndarray) -> np.ndarray:
    """Decoder output `[3, H, W]` → float32 `[H, W, 3]` in 0…1, as diffusers' "np"."""
    return (array.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1)


def to_pil(array: np.ndarray) -> Image.Image:
    return Image.fromarray((to_unit(array) * 255).round().astype(np.uint8))
