"""Every kind of pixels becomes the RGB that a viewer shows, or is refused."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.images import load_image


def saved(folder, image, name="image.png", **options):
    image.save(folder / name, **options)
    return folder / name


def test_transparency_is_laid_over_white():
    assert load_image(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(Image.new("LA", (2, 2), (0, 255))).getpixel((0, 0)) == (0, 0, 0)


def test_palette_transparency(tmp_path):
    image = Image.new("P", (2, 2), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    path = saved(tmp_path, image, transparency=0)
    assert load_image(path).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("L", 77, (77,) * 3),
        ("1", 1, (255,) * 3),
        ("YCbCr", (255, 128, 128), (255,) * 3),
    ],
)
def test_other_modes_are_converted(mode, colour, expected):
    found = load_image(Image.new(mode, (4, 4), colour)).getpixel((1, 1))
    assert np.abs(np.subtract(found, expected)).max() <= 1


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (32896, 128)])
def test_sixteen_bits_are_scaled(tmp_path, value, expected):
    image = Image.fromarray(np.array([[value, 65535]], dtype=np.uint16))
    assert load_image(saved(tmp_path, image)).getpixel((0, 0)) == (expected,) * 3


def test_dark_sixteen_bit_images_stay_dark(tmp_path):
    image = Image.fromarray(np.full((2, 2), 200, dtype=np.uint16))
    assert load_image(saved(tmp_path, image)).getpixel((0, 0)) == (1, 1, 1)


def png16(colour, pixels, transparent) -> bytes:
    """A PNG of 16 bits a channel, one row, with a value that means transparent."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = 1 if colour == 0 else 3
    header = struct.pack(">IIBBBBB", len(pixels) // channels, 1, 16, colour, 0, 0, 0)
    row = b"\0" + struct.pack(f">{len(pixels)}H", *pixels)
    trns = struct.pack(f">{channels}H", *transparent)
    chunks = (b"IHDR", header), (b"tRNS", trns), (b"IDAT", zlib.compress(row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


def test_transparency_of_sixteen_bits():
    grey = load_image(png16(0, (257 * 90, 51400), (51400,)))
    assert [grey.getpixel((x, 0)) for x in (0, 1)] == [(90,) * 3, (255,) * 3]
    colours = load_image(png16(2, (0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0x8000), (0x1234, 0x5678, 0x9ABC)))
    assert [colours.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 128)]


def test_integers_and_floats_are_what_pillow_shows_or_refused():
    grey = Image.new("L", (4, 4), 200)
    assert load_image(grey.convert("I")).getpixel((0, 0)) == (200,) * 3
    assert load_image(Image.fromarray(np.full((4, 4), 0.8, np.float32))).getpixel((0, 0)) == (204,) * 3
    wide = Image.fromarray(np.array([[0, 60000]], np.int32))
    for image in (wide, grey.convert("F"), Image.fromarray(np.full((4, 4), np.nan, np.float32))):
        with pytest.raises(MRCError, match=r"0…255|0…1"):
            load_image(image)


def profile(swap=()) -> bytes:
    """sRGB, or with the colours of two primaries exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    tags = {
        bytes(data[i : i + 4]): struct.unpack(">II", data[i + 4 : i + 12]) for i in range(132, 132 + 12 * count, 12)
    }
    if swap:
        (first, size), (second, _) = (tags[name] for name in swap)
        data[first : first + size], data[second : second + size] = (
            data[second : second + size], data[first : first + size],
        )  # fmt: skip
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA"])
def test_a_colour_profile_decides(tmp_path, mode):
    """Greens are red where the profile says so; greys stay; transparency stays."""
    image = Image.new("RGB", (4, 4), (200, 30, 30)).convert(mode)
    plain, shown = (
        load_image(saved(tmp_path, image, icc_profile=icc)) for icc in (profile(), profile((b"rXYZ", b"gXYZ")))
    )
    expected = plain.getpixel((0, 0))
    if mode in ("L", "LA"):
        assert np.ptp(shown.getpixel((0, 0))) <= 2
    else:
        expected = (expected[1], expected[0], expected[2])
    assert np.abs(np.subtract(shown.getpixel((0, 0)), expected)).max() <= 2
    assert np.abs(np.subtract(plain.getpixel((0, 0)), load_image(image).getpixel((0, 0)))).max() <= 1


@pytest.mark.parametrize("icc", [b"nonsense", profile()[:200]])
def test_a_broken_profile_is_ignored_aloud(tmp_path, icc):
    path = saved(tmp_path, Image.new("RGB", (4, 4), (200, 30, 30)), icc_profile=icc)
    with pytest.warns(UserWarning, match="colour profile is ignored"):
        assert load_image(path).getpixel((0, 0)) == (200, 30, 30)


def test_a_profile_for_other_colours_is_ignored_aloud(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "a.tif", icc_profile=profile())
    with pytest.warns(UserWarning, match="it is for RGB and the image is CMYK"):
        assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("last", [3, 4])
def test_arrays_and_tensors_are_one_image(photo, last):
    """As diffusers reads them: floats in 0…1, channels first or last."""
    whole = np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)])[..., :last]
    unit = whole / np.float32(255)
    first = torch.from_numpy(unit).permute(2, 0, 1)
    given = [whole, unit, unit.astype(np.float64), unit[None], unit.transpose(2, 0, 1), first, first[None]]
    for image in (*given, torch.from_numpy(whole), first.clone().requires_grad_()):
        np.testing.assert_array_equal(np.asarray(load_image(image)), photo)
    rough = np.asarray(load_image(first.bfloat16()), dtype=int)
    assert np.abs(rough - photo).max() <= 1


def test_grey_arrays(photo):
    grey = photo[..., 0]
    for image in (grey, grey[..., None], torch.from_numpy(grey)[None], grey / 255):
        np.testing.assert_array_equal(np.asarray(load_image(image)), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((4, 4, 3), np.uint8), "two meanings"),
        (np.zeros((3, 8, 3)), "two meanings"),
        (np.zeros((2, 8, 8, 3)), "give a list"),
        (np.zeros((8, 8, 2), np.uint8), "give .H, W."),
        (np.zeros((8, 0, 3), np.uint8), "pixel"),
        (np.zeros(8, np.uint8), "give .H, W."),
        (np.full((8, 8, 3), 0.5) * 255, "divide 0…255 by 255"),
        (np.full((8, 8, 3), -0.5), "x / 2"),
        (np.full((8, 8, 3), np.nan), "floats from nan"),
        (np.zeros((8, 8, 3), np.uint16), "uint8 in 0…255"),
        (np.zeros((8, 8, 3), bool), "uint8 in 0…255"),
        (np.zeros((8, 8, 3), np.int64), "uint8 in 0…255"),
        (np.zeros((8, 8), object), "uint8 in 0…255"),
        (np.broadcast_to(np.float32(0), (10**5, 10**5, 3)), "limit"),
    ],
)
def test_arrays_with_two_meanings_or_none_are_refused(array, word):
    with pytest.raises(MRCError, match=word):
        load_image(array)
