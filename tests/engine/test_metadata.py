import io
from functools import cache

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from mrc_edit.engine.images import load_image
from mrc_edit.engine.metadata import in_profile, is_ours, read_metadata
from mrc_edit.engine.outputs import Output, write
from mrc_edit.engine.sources import Source

Tag, Folder = ExifTags.Base, ExifTags.IFD


@cache  # it holds the time
def wide_gamut() -> bytes:
    """An RGB profile other than sRGB: its red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {profile[132 + 12 * i :][:4].decode(): 132 + 12 * i for i in range(int.from_bytes(profile[128:132]))}
    red, green = tags["rXYZ"], tags["gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


@pytest.fixture
def photograph(tmp_path):
    """A JPEG that a camera held upright took, with place, time, and a colour profile."""
    exif = Image.Exif()
    exif.update({Tag.Orientation: 6, Tag.Make: "Maker", Tag.Software: "firmware", Tag.ImageWidth: 40})
    exif.get_ifd(Folder.Exif).update({Tag.DateTimeOriginal: "2020:01:02 03:04:05", Tag.ExifImageWidth: 40})
    exif.get_ifd(Folder.GPSInfo).update({1: "N", 2: (48.0, 8.0, 0.0)})
    path = tmp_path / "photograph.jpg"
    pixels = np.random.RandomState(0).randint(0, 256, (3, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((40, 24), Image.Resampling.BICUBIC)
    image.save(path, exif=exif, icc_profile=wide_gamut(), quality=100, subsampling=0)
    return path


@pytest.mark.parametrize(("ending", "format_name"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_an_edit_looks_like_its_source_and_says_where_it_is_from(photograph, tmp_path, ending, format_name):
    """With an edit that changes nothing: upright once, the same colours, the same place and time."""
    source, path = Source(str(photograph), photograph), tmp_path / f"edited.{ending}"
    unchanged = load_image(photograph)
    assert unchanged.size == (24, 40)
    write(unchanged, Output(source, path, format_name), read_metadata(source), 100 if ending != "png" else None, None)
    edited = Image.open(path)
    assert edited.size == (24, 40) and ImageOps.exif_transpose(edited).size == (24, 40)
    assert edited.info["icc_profile"] == wide_gamut()
    difference = np.asarray(load_image(path)).astype(int) - np.asarray(unchanged)
    assert abs(difference).mean() < (2 if ending == "png" else 8)
    exif = edited.getexif()
    assert exif[Tag.Make] == "Maker" and exif[Tag.Software].startswith("mrc-edit ")
    assert Tag.Orientation not in exif and Tag.ImageWidth not in exif
    assert exif.get_ifd(Folder.Exif) == {Tag.DateTimeOriginal: "2020:01:02 03:04:05"}
    assert exif.get_ifd(Folder.GPSInfo) == {1: "N", 2: (48.0, 8.0, 0.0)}
    assert is_ours(path) and not is_ours(photograph) and not is_ours(tmp_path / "none.png")


def test_a_profile_of_other_than_rgb_stays_behind(tmp_path):
    path = tmp_path / "grey.png"
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"GRAY"
    Image.new("L", (8, 8), 100).save(path, icc_profile=bytes(profile))
    metadata = read_metadata(Source(str(path), path))
    edit = Image.new("RGB", (8, 8), "red")
    assert metadata.profile is None and in_profile(edit, metadata) == (edit, None)


def test_damaged_exif_is_left_out_with_a_warning(tmp_path):
    content = io.BytesIO()
    exif = Image.Exif()
    exif.get_ifd(Folder.GPSInfo)[1] = "N"
    Image.new("RGB", (8, 8)).save(content, "JPEG", exif=exif)
    north, number = (
        b"\x00\x01\x00\x02\x00\x00\x00\x02N",
        b"\x00\x1e\x00\x02\x00\x00\x00\x02N",
    )  # a number that is a text
    damaged = content.getvalue().replace(north, number)
    assert damaged != content.getvalue()
    with pytest.warns(UserWarning, match="EXIF of standard input is left out"):
        metadata = read_metadata(Source("-", damaged))
    assert b"mrc-edit" in metadata.exif
