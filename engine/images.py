"""Images in and out: files, arrays and tensors → upright RGB → float arrays in -1…1 → Pillow or numpy again."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ..core.errors import MRCError
from .pixels import array_image, check_pixels, tensor_array, to_rgb

# No others: Pillow runs Ghostscript for EPS, and the picture in an ICO may be far larger than it says
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
LANCZOS = Image.Resampling.LANCZOS
READ = "JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read"


class Tensor(Protocol):
    """A PyTorch tensor; the engine imports no PyTorch."""

    def detach(self) -> Any: ...


ImageLike = Image.Image | str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | Tensor


def load_image(image: ImageLike) -> Image.Image:
    """An upright RGB image in sRGB, without transparency.

    EXIF rotation and colour profiles are applied, transparency is laid over white, 16 bits are scaled to 8. Of an
    animation it is the first frame.

    Args:
        image: a path, the bytes of a file, or a file opened in binary, in one of `FORMATS`; a Pillow image; an array
            or tensor as `array_image` takes it.

    Raises:
        MRCError: not an image, another format, damaged, more than 64 megapixels, or values that can be meant in
            more than one way.
    """
    name = str(image) if isinstance(image, str | os.PathLike) else "the image"
    with decoding(name):
        if isinstance(image, str | os.PathLike):
            if not Path(image).is_file():
                raise MRCError(f"{name} {'is not a file' if Path(image).exists() else 'does not exist'}; give an image")
            with Path(image).open("rb") as file:
                return read(file, name)
        if isinstance(image, bytes | bytearray | memoryview):
            return read(io.BytesIO(image), name)
        if hasattr(image, "read"):
            return read(cast(BinaryIO, image), name)
        if isinstance(image, Image.Image):
            return decoded(image, name)
        if isinstance(image, np.ndarray):
            return to_rgb(array_image(image))
        if hasattr(image, "detach"):
            return to_rgb(array_image(tensor_array(image)))
    raise MRCError(f"image is a {type(image).__name__}; give a path, bytes, a file, a Pillow image, array or tensor")


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Make one MRCError of whatever Pillow raises: its readers have no common exception."""
    try:
        yield
    except MRCError:
        raise
    except Image.DecompressionBombError as error:
        raise MRCError(f"{name} is too large ({error}); resize it first") from None
    except MemoryError:
        raise MRCError(f"there is not enough memory to read {name}; resize it first") from None
    except Exception as error:
        raise MRCError(f"{name} cannot be decoded ({error}); the file is damaged") from None


def read(file: BinaryIO, name: str) -> Image.Image:
    with opened(file, name) as image:
        return decoded(image, name)


@contextmanager
def opened(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """The image of a file; only its header is read so far."""
    if isinstance(file, io.TextIOBase):
        raise MRCError(f"{name} is a file opened as text; open it in binary, with mode 'rb'")
    if not file.seekable():
        file = io.BytesIO(file.read())
    try:
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except (UnidentifiedImageError, KeyError):  # KeyError: this Pillow has no reader for a format
        found = file_format(file)
        if found in FORMATS:
            raise MRCError(f"{name} is a damaged {found}; restore the file") from None
        raise MRCError(f"{name} is {found}; {READ}") from None


def file_format(file: BinaryIO) -> str:
    """The format that a file begins like, such as EPS. Nothing is decoded."""
    file.seek(0)
    begin = file.read(16).ljust(16, b"\0")
    Image.init()
    return next((name for name, (_, accept) in Image.OPEN.items() if accept and accept(begin) is True), "not an image")


def decoded(image: Image.Image, name: str) -> Image.Image:
    if isinstance(image, ImageFile.ImageFile) and image.format not in (*FORMATS, "MPO"):  # MPO: JPEGs in one file
        raise MRCError(f"{name} is {image.format}; {READ}. Give image.copy() if you trust its file")
    check_pixels(*image.size, name)
    if tags := getattr(image, "tag_v2", None):  # a TIFF decodes whole tiles, which may be larger than the image
        check_pixels(tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1), f"a tile of {name}")
    return to_rgb(image)


def to_array(image: Image.Image) -> np.ndarray:
    """RGB image → float32 `[3, H, W]` in -1…1."""
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1


def to_unit(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Decoder output `[3, H, W]` → float32 `[H, W, 3]` in 0…1 of that width and height, as diffusers' "np"."""
    unit = (array.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1)
    if size == (unit.shape[1], unit.shape[0]):
        return unit
    channels = [Image.fromarray(np.ascontiguousarray(unit[..., i])).resize(size, LANCZOS) for i in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)


def to_pil(array: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Decoder output `[3, H, W]` → RGB image of that width and height."""
    height, width = array.shape[1:]
    image = Image.fromarray((to_unit(array, (width, height)) * 255).round().astype(np.uint8))
    return image if size == image.size else image.resize(size, LANCZOS)
