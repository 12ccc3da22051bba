"""Eight-bit RGB in sRGB of every kind of pixels that Pillow, numpy and PyTorch have."""

import io
from typing import Any, cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from ..core.errors import MRCError
from .notes import note

MAX_PIXELS = 64_000_000
EIGHT_BITS = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)  # of 16; rounded
PROFILE_MODES = {"GRAY": ("L",), "RGB": ("RGB", "L"), "CMYK": ("CMYK",)}  # colour space → modes it may describe


def check_pixels(width: int, height: int, name: str) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        advice = "resize it first" if width * height else "give at least one pixel"
        raise MRCError(f"{name} has {width}×{height} pixels; the limit is {MAX_PIXELS:,}, {advice}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, in sRGB, transparency laid over white.

    Raises:
        MRCError: integers beyond 0…255 or floats beyond 0…1.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = eight_bits(image)
    if not image.has_transparency_data:
        return in_srgb(image, profile)
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # 16 bits, of which Pillow read 8
    whole = image if image.mode == "RGBA" else image.convert("RGBA")
    grey = image.mode in ("1", "L", "LA")
    colours = in_srgb(whole.getchannel("R") if grey else whole.convert("RGB"), profile)
    white = Image.new("RGB", image.size, "white")
    white.paste(colours, mask=whole.getchannel("A"))
    return white


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16-bit integers, 32-bit integers or floats as L, or LA where a value means transparent."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = EIGHT_BITS[values]
    elif image.mode == "F":
        grey = of_unit(values)
    elif values.min() >= 0 and values.max() <= 255:
        grey = values.astype(np.uint8)  # as Pillow makes and shows mode I
    else:
        found = f"{values.min()} to {values.max()}"
        raise MRCError(f"the image has 32-bit integers from {found}; which is white? scale them to 0…255")
    if not isinstance(image.info.get("transparency"), int):
        return Image.fromarray(grey)
    opaque = np.where(values == image.info["transparency"], np.uint8(0), np.uint8(255))
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(opaque)))


def of_unit(values: np.ndarray) -> np.ndarray:
    """Floats in 0…1 as uint8."""
    if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise MRCError(
            f"the image has floats from {values.min():g} to {values.max():g}; give 0…1, as diffusers does: "
            "divide 0…255 by 255, and of -1…1 give x / 2 + 0.5"
        )
    return (values * np.float32(255)).round().astype(np.uint8)


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image without transparency as RGB; its colours are those of `profile`, or sRGB without one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            image = image if image.mode in ("L", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")
            if image.mode not in PROFILE_MODES.get(space, ()):
                raise ValueError(f"it is for {space} and the image is {image.mode}")
            image = image.convert("RGB") if space == "RGB" else image
            srgb = ImageCms.createProfile("sRGB")
            return cast(Image.Image, ImageCms.profileToProfile(image, source, srgb, outputMode="RGB"))
        except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError) as error:
            note(f"the image's colour profile is ignored ({error}); its colours are read as sRGB")
    return image.convert("RGB")


def tensor_array(tensor: Any) -> np.ndarray:
    """A PyTorch tensor on any device as numpy; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()


def array_image(array: np.ndarray) -> Image.Image:
    """Pillow image of an array: uint8 in 0…255, or floats in 0…1, which are rounded to 8 bits.

    Args:
        array: `[H, W]`, `[H, W, C]` or `[C, H, W]` with C of 1, 3 or 4, or one of these as a batch of one.

    Raises:
        MRCError: another shape, one that can be read in two ways, another type, floats out of range.
    """
    shape = array.shape
    if array.ndim == 4:
        if len(array) != 1:
            raise MRCError(f"the image array is a batch, {shape}; give a list of images, such as list(array)")
        array = array[0]
    if array.ndim == 3:
        first, last = (array.shape[axis] in (1, 3, 4) for axis in (0, 2))
        if first and last:
            raise MRCError(f"the image array is {shape}, which has two meanings; give a Pillow image")
        array = np.moveaxis(array, 0, 2) if first else array
        if array.shape[2] == 1:
            array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise MRCError(f"the image array is {shape}; give [H, W], [H, W, C] or [C, H, W], with 1, 3 or 4 for C")
    check_pixels(array.shape[1], array.shape[0], "the image array")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise MRCError(f"the image array holds {array.dtype}; give uint8 in 0…255, or floats in 0…1")
    return Image.fromarray(np.ascontiguousarray(array if array.dtype == np.uint8 else of_unit(array)))
