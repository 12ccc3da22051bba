"""Photographs for backgrounds: scikit-image's own, and those of a folder, such as Debian's wallpaper packages."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.errors import MRCError
from ...engine.images import check_pixels
from ..data.triplet import NARROWEST

PACKAGED = ("astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg", "ihc.png")
SHORTER_SIDE = 192  # pixels; a crop of 128 shows two thirds of it


def load_photographs(folder: str | Path | None = None) -> list[np.ndarray]:
    """All photographs, uint8 `[H, W, 3]`, shorter side 192 pixels, in the order of their names.

    Args:
        folder: its .jpg, .jpeg and .png files, also in sub-folders, are added to those of scikit-image.

    Raises:
        MRCError: scikit-image is not installed, or the folder holds no picture.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise MRCError("the miniature world takes its photographs from scikit-image; pip install 'mrc-edit[train]'")
    paths = [Path(package.origin).parent / "data" / name for name in PACKAGED]
    if folder is not None:
        more = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
        if not more:
            raise MRCError(f"{folder} holds no .jpg or .png; give a folder of photographs")
        paths += more
    return [shrink(path) for path in paths]


def shrink(path: Path) -> np.ndarray:
    """The photograph with a shorter side of 192 pixels."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as opened:
            # decode JPEG at reduced size: wallpapers load fast
            opened.draft("RGB", (2 * SHORTER_SIDE, 2 * SHORTER_SIDE))
            check_pixels(*opened.size, "it")
            image = opened.convert("RGB")
        if max(image.size) > NARROWEST * min(image.size):
            raise MRCError(f"{image.size} is too narrow")
    except Exception as error:  # decoders of damaged files raise nearly every type
        raise MRCError(f"{path} is no readable picture ({error}); remove it from the folder") from None
    scale = SHORTER_SIDE / min(image.size)
    size = (max(SHORTER_SIDE, round(image.width * scale)), max(SHORTER_SIDE, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))
