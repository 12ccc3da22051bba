"""What an edit carries over from its source: EXIF, and the colour profile."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import ExifTags, Image, ImageCms

from ..core.console import VERSION
from ..core.errors import reason
from .images import FORMATS, decoding, opened
from .sources import Source

Tag = ExifTags.Base
# Of the first folder; others describe the pixels of the source, its orientation too, which is applied already
KEPT = (Tag.ImageDescription, Tag.Make, Tag.Model, Tag.DateTime, Tag.Artist, Tag.HostComputer, Tag.Copyright)
FOLDERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
OF_PIXELS = (Tag.ExifImageWidth, Tag.ExifImageHeight, Tag.ExifInteroperabilityOffset)
MARK = VERSION.split()[0] + " "  # how Software begins in files of ours


@dataclass(frozen=True)
class Metadata:
    exif: bytes
    profile: bytes | None  # of an RGB source


def read_metadata(source: Source) -> Metadata:
    """What the edit of a source carries over. Damaged EXIF is left out with a warning.

    Raises:
        MRCError: not an image.
    """
    with decoding(source.title), source.open() as file, opened(file, source.title) as image:
        try:
            exif = kept_exif(image.getexif()).tobytes()
        except Exception as error:  # Pillow's readers have no common exception
            warnings.warn(f"the EXIF of {source.title} is left out, it is damaged ({reason(error)})", stacklevel=2)
            exif = kept_exif(Image.Exif()).tobytes()
        profile = image.info.get("icc_profile")
    return Metadata(exif, profile if profile and is_rgb(profile) else None)


def kept_exif(exif: Image.Exif) -> Image.Exif:
    """What stays true of an edit, and that `mrc-edit` wrote it."""
    kept = Image.Exif()
    kept.update({tag: exif[tag] for tag in KEPT if tag in exif})
    for folder in FOLDERS:
        if entries := {tag: value for tag, value in exif.get_ifd(folder).items() if tag not in OF_PIXELS}:
            kept.get_ifd(folder).update(entries)
    kept[Tag.Software] = VERSION
    return kept


def is_rgb(profile: bytes) -> bool:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip() == "RGB"
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False


def in_profile(image: Image.Image, metadata: Metadata) -> tuple[Image.Image, bytes | None]:
    """An edit in sRGB in the colours of its source's profile, and that; in sRGB where it has none that can be used."""
    if metadata.profile is None:
        return image, None
    try:
        target = ImageCms.ImageCmsProfile(io.BytesIO(metadata.profile))
        converted = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:  # such as a profile of a scanner
        warnings.warn(f"the edit is in sRGB: its source's colour profile is for reading alone ({error})", stacklevel=2)
        return image, None
    return cast(Image.Image, converted), metadata.profile


def is_ours(path: Path) -> bool:
    """Whether `mrc-edit` wrote the image file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return str(image.getexif().get(Tag.Software, "")).startswith(MARK)
    except Exception:  # no image
        return False
