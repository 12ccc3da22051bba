import numpy as np
import pytest
from PIL import Image, ImageFilter

from mrc_edit.bench.real_edit.proxies import METRICS, proxy_metrics


@pytest.fixture(scope="module")
def picture():
    """192×128, smooth, clear of black and white."""
    coarse = np.random.RandomState(3).randint(60, 190, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((192, 128), Image.Resampling.BICUBIC)


def noisy(image: Image.Image, deviation: float, seed: int = 0) -> Image.Image:
    values = np.asarray(image) + np.random.RandomState(seed).normal(0, deviation, (image.height, image.width, 1))
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def test_an_unchanged_picture_is_perfect(picture):
    found = proxy_metrics(picture, picture, "add")
    best = dict.fromkeys(METRICS, 0.0) | {"psnr": 60.0, "ssim": 1.0}
    assert found == best


def test_a_local_edit_leaves_the_outside_perfect(picture):
    edited = picture.copy()
    edited.paste((255, 0, 0), (40, 30, 100, 90))
    found = proxy_metrics(picture, edited, "local")
    assert found["area"] == pytest.approx(100 * 60 * 60 / (192 * 128), rel=0.1)
    assert (found["psnr"], found["ssim"], found["structure"]) == (60, 1, pytest.approx(0, abs=1e-3))
    assert found["clipped"] == pytest.approx(100 * 60 * 60 / (192 * 128), abs=1e-3)


def test_damage_outside_is_seen(picture):
    edited = picture.copy()
    edited.paste((255, 0, 0), (40, 30, 100, 90))
    clean, damaged = proxy_metrics(picture, edited, "local"), proxy_metrics(picture, noisy(edited, 8), "local")
    assert damaged["psnr"] == pytest.approx(20 * np.log10(255 / 8), abs=0.4)
    assert damaged["ssim"] < 0.9 and damaged["structure"] > clean["structure"] + 0.01
    assert damaged["colour"] > clean["colour"] + 0.5


def test_a_colour_cast_is_colour_and_not_structure(picture):
    cast = Image.fromarray((np.asarray(picture) + np.array([0, 0, 12])).astype(np.uint8))
    found = proxy_metrics(picture, cast, "texture")
    assert found["colour"] > 3 and found["structure"] < 0.01


def test_noise_is_estimated_in_levels(picture):
    assert proxy_metrics(picture, noisy(picture, 10), "style")["noise"] == pytest.approx(10, rel=0.1)


def test_blur_is_seen(picture):
    sharp = noisy(picture, 15)
    assert proxy_metrics(sharp, sharp.filter(ImageFilter.GaussianBlur(2)), "style")["blur"] > 0.2


@pytest.mark.parametrize("kind", ["global", "style"])
def test_nothing_lies_outside_an_edit_of_the_whole(picture, kind):
    found = proxy_metrics(picture, noisy(picture, 8), kind)
    assert all(found[name] is None for name in ("psnr", "ssim", "structure", "colour"))
    assert found["noise"] > 5


def test_pictures_of_another_size_are_no_edit(picture):
    with pytest.raises(ValueError):
        proxy_metrics(picture, picture.resize((96, 64)), "local")
