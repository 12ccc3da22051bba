"""Images of requests: which are taken, at which size they are edited, and the edit as a file."""

import base64
import io
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ..engine.finishing import Finishing, finish
from ..engine.framing import Box, Frame, framed, make_frame, middle
from ..engine.images import decoding, file_format, load_image
from ..engine.manifest import Geometry
from ..engine.notes import collecting
from ..engine.outputs import encoded
from ..engine.request import naming
from .errors import Refused
from .fields import Fields, Format

TAKEN = ("PNG", "JPEG", "WEBP")  # every other reader of Pillow stays shut
QUALITY = 90  # of jpeg and webp, where none is asked for
LONGEST = {"jpeg": 65_500, "webp": 16_383}  # side that the format can have


@dataclass(frozen=True)
class Source:
    """An image as the engine gets it.

    Attributes:
        image: the bytes that were sent, or the image already at its size.
        resolution: the engine's argument of that name.
        box: the part of the image that is edited where `image` is that part; None where the engine chooses it.
        data: the bytes that were sent.
        warnings: what `image` has lost of it already.
    """

    image: bytes | Image.Image
    resolution: int | None
    box: Box | None = None
    data: bytes = b""
    warnings: list[str] = field(default_factory=list)


def source_of(data: bytes, fields: Fields, geometry: Geometry, max_pixels: int) -> Source:
    """Check an image by its header, and cut it where a size is asked for.

    Raises:
        MRCError: another format, a damaged header, too many pixels to edit or to send back, or a side that
            `output_format` cannot have.
    """
    size = pixels(data)
    if fields.size == "auto":
        resolution = geometry.resolution if fields.resolution is None else fields.resolution
        with naming("resolution"):
            frame = make_frame(*size, resolution, geometry.multiple, fields.fit or "crop", bool(fields.keep_size))
        check_area("resolution", frame, max_pixels)
        check_sides(fields.output_format, frame.output)
        return Source(data, fields.resolution, data=data)
    width, height = (int(side) for side in fields.size.split("x"))
    if width % geometry.multiple or height % geometry.multiple:
        raise Refused("invalid_value", f"size: both sides must be multiples of {geometry.multiple}", "size")
    for name in ("resolution", "fit", "keep_size"):
        if getattr(fields, name) is not None:
            raise Refused("invalid_value", f"size and {name} are both given; give one", name)
    check_area("size", Frame((width, height), (0, 0, 0, 0), (0, 0), (width, height)), max_pixels)
    with naming("image"), collecting() as warnings:
        image = load_image(data)
        box = middle(*image.size, (width, height))
        image = framed(image, Frame((width, height), box, (width, height), (width, height)))
    return Source(image, 0, box, data, warnings)


def pixels(data: bytes) -> tuple[int, int]:
    """Width and height by the file's header. What the format is, its content decides."""
    with naming("image"), decoding("the image"):
        try:
            with Image.open(io.BytesIO(data), formats=TAKEN) as image:
                return image.size
        except UnidentifiedImageError:
            found = file_format(io.BytesIO(data))
            raise Refused("invalid_image", f"the image is {found}; send PNG, JPEG or WebP", "image") from None


def check_area(name: str, frame: Frame, max_pixels: int) -> None:
    width, height = max(frame.size, frame.output, key=lambda size: size[0] * size[1])
    if width * height > max_pixels:
        raise Refused(
            "invalid_value",
            f"{name}: an edit of {width}×{height} is more than {max_pixels:,} pixels; ask for less",
            name,
        )


def check_sides(kind: Format, size: tuple[int, int]) -> None:
    if kind in LONGEST and max(size) > LONGEST[kind]:
        raise Refused(
            "invalid_value",
            f"output_format: the edit is {max(size)} pixels long, and {kind} at most {LONGEST[kind]}; use png",
            "output_format",
        )


def encode(
    image: Image.Image, kind: Format, compression: int | None, finishing: Finishing, source: bytes | None = None,
    text: PngInfo | None = None,
) -> str:  # fmt: skip
    """An image as the base64 of a file.

    Args:
        source: what an edit was made of; None for a partial image, which nothing signs.
        text: of a PNG.

    Raises:
        MRCError: the format or `finishing` refuses it.
    """
    settings: dict[str, Any] = {"quality": QUALITY if compression is None else compression}
    if kind == "png":  # the default compression takes several times as long for a few per cent
        settings = {"compress_level": 1, "pnginfo": text}
    content = partial(encoded, image, kind.upper(), "the edit", **settings)
    of_source = None if source is None else lambda: source
    return base64.b64encode(finish(image, kind.upper(), content, of_source, finishing)).decode()
