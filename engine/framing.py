"""From an image of any size to one that the model takes, and back."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from PIL import Image

from ..core.errors import MRCError
from .notes import note

MIN_RESOLUTION = 64
MAX_SIDE = 4096  # of what is edited; self-attention grows with the square of the pixels
WARN_FROM = 0.05  # share of a side that is cropped
Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # left, top, right, bottom
Fit = Literal["crop", "pad", "stretch", "square"]
FITS = ("crop", "pad", "stretch", "square")


@dataclass(frozen=True)
class Frame:
    """How an image is brought to the size at which it is edited.

    Attributes:
        size: at which it is edited, multiples of the model's.
        box: the part that is edited, in pixels of the image.
        content: what that part takes of `size`, from the top left; the rest is padding.
        output: size of the edited image that is given back.
    """

    size: Size
    box: Box
    content: Size
    output: Size


def make_frame(
    width: int, height: int, resolution: int, multiple: int, fit: Fit = "crop", keep_size: bool = False
) -> Frame:
    """The frame of an image.

    Args:
        resolution: pixels of the longer side, about; 0 keeps the image's own.
        multiple: of which both sides are multiples.
        fit: "crop" cuts off what is beyond `cropped_size`; "pad" repeats the last row and column, and the edit is cut
            back; "stretch" changes the aspect ratio, by less than `multiple` pixels a side; "square" makes it 1.
        keep_size: the edit is scaled back to the size of the part that it shows.

    Raises:
        MRCError: a resolution that is neither 0 nor from 64 to 4096, a longer side to edit than that, or with "crop"
            an own size that is no multiple.
    """
    check_resolution(resolution)
    content = scaled_size(width, height, resolution) if resolution else (width, height)
    size = rounded_up(content[0], multiple), rounded_up(content[1], multiple)
    if fit == "crop" and resolution:
        size = cropped_size(width, height, resolution, multiple)
    elif fit == "crop" and size != content:
        raise MRCError(
            f"the image is {width}×{height} and resolution=0 keeps its size; both sides must be "
            f"multiples of {multiple}, so resize it, give a resolution, or fit='pad'"
        )
    if fit == "square":
        size = (rounded_up(max(content), multiple),) * 2
    if max(size) > MAX_SIDE:
        raise MRCError(f"a {width}×{height} image would be edited at {size[0]}×{size[1]}; crop it, or resize it first")
    box = middle(width, height, size) if fit == "crop" else (0, 0, width, height)
    content = content if fit == "pad" else size
    return Frame(size, box, content, whole(box) if keep_size else content)


def check_resolution(resolution: object) -> None:
    """Refuse what is neither 0 nor from 64 to 4096.

    Raises:
        MRCError: it is.
    """
    is_number = isinstance(resolution, int) and not isinstance(resolution, bool)
    if not is_number or (resolution != 0 and not MIN_RESOLUTION <= resolution <= MAX_SIDE):  # type: ignore[operator]
        limits = f"{MIN_RESOLUTION} to {MAX_SIDE}"
        raise MRCError(
            f"resolution is {resolution!r:.40}; give a whole number of pixels from {limits}, or 0 for the image's own "
            "size",
            argument="resolution",
        )


def cropped_size(width: int, height: int, resolution: int, multiple: int) -> Size:
    """As the released scripts choose it, whose multiple is 64: longer side near `resolution`, both multiples."""
    short, long = min(width, height), max(width, height)
    short_side = rounded_up(Fraction(short * resolution, long), multiple)
    factor = Fraction(short_side, short)
    fitted = [int(side * factor) // multiple * multiple for side in (width, height)]
    return fitted[0], fitted[1]


def scaled_size(width: int, height: int, resolution: int) -> Size:
    """The image's aspect ratio with a longer side of `resolution`."""
    factor = Fraction(resolution, max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def rounded_up(value: int | Fraction, multiple: int) -> int:
    return int(-(-value // multiple)) * multiple


def middle(width: int, height: int, size: Size) -> Box:
    """The largest part in the middle of the image that has the aspect ratio of `size`."""
    across, down = min(width, height * size[0] / size[1]), min(height, width * size[1] / size[0])
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down


def whole(box: Box) -> Size:
    left, top, right, bottom = box
    return max(1, round(right - left)), max(1, round(bottom - top))


def framed(image: Image.Image, frame: Frame, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """The image at `frame.size`; a warning says what is cropped, if that is much."""
    left, top, right, bottom = frame.box
    for kept, side, name in ((right - left, image.width, "width"), (bottom - top, image.height, "height")):
        if 1 - kept / side >= WARN_FROM:
            note(
                f"{1 - kept / side:.0%} of the image's {name} is cropped ({side} → {kept:.0f} pixels); "
                "fit='pad' or 'stretch' edits all of it"
            )
    if (frame.box, frame.content) != ((0, 0, *image.size), image.size):
        image = image.resize(frame.content, resample, box=frame.box)
    if frame.content == frame.size:
        return image
    missing = [(0, side - used) for side, used in zip(frame.size, frame.content, strict=True)]
    return Image.fromarray(np.pad(np.asarray(image), (missing[1], missing[0], (0, 0)), mode="edge"))


def seen(image: Image.Image, edited: Image.Image, frame: Frame, side: int) -> Image.Image:
    """The square picture of what is edited that a reader looks at: of the image itself, or of `edited` if padded."""
    if frame.content != frame.size:
        image, frame = edited, Frame(frame.size, (0, 0, *frame.size), frame.size, frame.size)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=frame.box)


def without_padding(edited: np.ndarray, frame: Frame) -> np.ndarray:
    """The part of an edited image `[3, H, W]` that shows the content."""
    width, height = frame.content
    return edited[:, :height, :width]
