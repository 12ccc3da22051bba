import numpy as np
import pytest
from PIL import Image, ImageFile

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.images import MAX_PIXELS, fit, fitted_size, load_image, to_array, to_pil


def saved(folder, image, name="image.png", **options):
    image.save(folder / name, **options)
    return folder / name


def test_round_trip(photo):
    np.testing.assert_array_equal(np.asarray(to_pil(to_array(load_image(photo)))), photo)


def test_path_pillow_and_array_agree(photo, tmp_path):
    path = saved(tmp_path, Image.fromarray(photo))
    for given in (path, str(path), Image.open(path), photo):
        np.testing.assert_array_equal(np.asarray(load_image(given)), photo)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert load_image(saved(tmp_path, image, "turned.jpg", exif=exif)).size == (10, 20)


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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8100, 20000])  # the second is beyond Pillow's own limit
def test_bomb_is_refused_before_decoding(tmp_path, monkeypatch, side):
    path = saved(tmp_path, Image.new("1", (side, side)))
    assert path.stat().st_size < 100_000 < MAX_PIXELS < side * side
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(MRCError, match="resize it first"):
        load_image(path)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        None,
        7,
        b"bytes",
    ],
)
def test_what_is_no_image(image):
    with pytest.raises(MRCError, match="image"):
        load_image(image)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    whole = saved(tmp_path, Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8)), "a.jpg")
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:900])
    for name in ("text.png", "half.jpg", "none.png", "."):
        with pytest.raises(MRCError, match=r"not an image|damaged|does not exist|cannot be decoded"):
            load_image(tmp_path / name)


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    # by the released scripts' formula, computed by hand
    [((1280, 853), 512, (576, 384)), ((853, 1280), 512, (384, 576)), ((512, 512), 512, (512, 512)),
     ((1280, 720), 256, (320, 192)), ((100, 100), 256, (256, 256)), ((1280, 853), 256, (256, 192))],
)  # fmt: skip
def test_released_sizes(size, resolution, expected):
    found = fitted_size(*size, resolution)
    assert all(side % 64 == 0 for side in found)
    assert found == expected


def test_own_size_is_kept_or_refused(photo):
    image = load_image(photo)
    assert fit(image, 0, 8) is image
    with pytest.raises(MRCError, match="resolution=0"):
        fit(image.crop((0, 0, 60, 100)), 0, 8)


def test_a_strip_that_would_become_huge_is_refused():
    with pytest.raises(MRCError, match="crop it first"):
        fit(Image.new("RGB", (5000, 10)), 512, 8)


def test_a_lazily_opened_damaged_image_is_an_error(photo, tmp_path):
    whole = saved(tmp_path, Image.fromarray(photo)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MRCError, match="cannot be decoded"):
        load_image(Image.open(tmp_path / "half.png"))


@pytest.mark.parametrize("resolution", [1, 63, 4097, -512, 512.0, "512"])
def test_bad_resolutions(photo, resolution):
    with pytest.raises(MRCError, match="resolution"):
        fit(load_image(photo), resolution, 8)
