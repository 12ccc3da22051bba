"""Sizes at which images are edited, what is cut off, and the way back."""

import itertools
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import AsyncEngine, Engine
from mrc_edit.engine.framing import FITS, MAX_SIDE, framed, make_frame, without_padding
from mrc_edit.engine.images import to_array, to_pil

SIZES = [(1280, 853), (853, 1280), (640, 480), (1280, 720), (100, 100), (129, 64), (7, 200), (64, 64)]
QUICK = {"num_inference_steps": 1, "seed": 3, "scheduler": "euler", "guidance_scale": 1, "image_guidance_scale": 1}


@pytest.fixture(scope="module")
def mini():
    return Engine.from_pretrained("mini")


def drawn(width, height) -> Image.Image:
    coarse = np.random.RandomState(width).randint(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    # by the released scripts' formula, computed by hand
    [((1280, 853), 512, (576, 384)), ((853, 1280), 512, (384, 576)), ((512, 512), 512, (512, 512)),
     ((1280, 720), 256, (320, 192)), ((100, 100), 256, (256, 256)), ((1280, 853), 256, (256, 192))],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*is cropped")
def test_a_multiple_of_64_gives_the_released_sizes_and_pixels(size, resolution, expected):
    frame = make_frame(*size, resolution, 64)
    assert frame.size == frame.output == expected
    released = ImageOps.fit(drawn(*size), expected, method=Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(framed(drawn(*size), frame)), np.asarray(released))


def test_a_finer_multiple_crops_less():
    """A 4:3 photograph at 128: the released rule takes a quarter, a multiple of 16 nothing."""
    assert make_frame(640, 480, 128, 64).size == (128, 128)
    frame = make_frame(640, 480, 128, 16)
    assert frame.size == (128, 96) and frame.box == (0, 0, 640, 480)


@pytest.mark.parametrize(("size", "fit", "resolution"), list(itertools.product(SIZES, FITS, (0, 128, 512))))
@pytest.mark.filterwarnings("ignore:.*is cropped")
def test_laws_of_a_frame(size, fit, resolution):
    if fit == "crop" and resolution == 0:
        return
    frame = make_frame(*size, resolution, 16, fit)
    kept = make_frame(*size, resolution, 16, fit, keep_size=True)
    assert all(side % 16 == 0 for side in frame.size)
    assert all(0 <= side - used < 16 for side, used in zip(frame.size, frame.content, strict=True))
    assert (frame.box == (0, 0, *size)) or fit == "crop"
    assert kept.output == size or fit == "crop"
    image = framed(drawn(*size), frame)
    assert image.size == frame.size
    back = to_pil(without_padding(to_array(image), frame), kept.output)
    assert back.size == kept.output
    if fit != "crop" and min(size) >= 64 and resolution != 128:  # scaled down and up, a smooth picture is itself
        difference = np.asarray(back, dtype=float) - np.asarray(drawn(*size))
        assert np.abs(difference).mean() < 3


def test_padding_repeats_the_edge_and_is_cut_off():
    image = drawn(70, 50)
    frame = make_frame(70, 50, 0, 16, "pad")
    padded = np.asarray(framed(image, frame))
    assert padded.shape == (64, 80, 3)
    np.testing.assert_array_equal(padded[:50, :70], np.asarray(image))
    np.testing.assert_array_equal(padded[50:], np.broadcast_to(padded[49:50], (14, 80, 3)))
    assert without_padding(to_array(Image.fromarray(padded)), frame).shape == (3, 50, 70)


def test_what_is_cropped_is_told():
    with pytest.warns(UserWarning, match=r"25% of the image's width is cropped \(640 → 480 pixels\); fit='pad'"):
        framed(drawn(640, 480), make_frame(640, 480, 128, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        framed(drawn(1280, 853), make_frame(1280, 853, 128, 16))


def test_an_own_size_is_kept_or_refused():
    image = drawn(64, 128)
    assert framed(image, make_frame(64, 128, 0, 16)) is image
    with pytest.raises(MRCError, match="resolution=0 keeps its size; both sides must be multiples of 16"):
        make_frame(60, 100, 0, 16)


@pytest.mark.parametrize("fit", FITS)
def test_no_side_is_larger_than_the_limit(fit):
    for width, height, resolution in ((MAX_SIDE + 16, 64, 0), (5000, 5008, 0), (10, 50_000, MAX_SIDE + 1)):
        with pytest.raises(MRCError, match=r"crop it, or resize it|resolution"):
            make_frame(width, height, resolution, 16, fit)
    assert make_frame(MAX_SIDE, 64, 0, 16, fit).size == (MAX_SIDE, MAX_SIDE if fit == "square" else 64)


def test_a_strip_that_would_become_huge_is_refused():
    with pytest.raises(MRCError, match="crop it, or resize it"):
        make_frame(5000, 10, 512, 64)


@pytest.mark.parametrize("resolution", [1, 63, 4097, -512, 512.0, "512"])
def test_bad_resolutions(resolution):
    with pytest.raises(MRCError, match="resolution"):
        make_frame(64, 64, resolution, 16)


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_an_edit_comes_back_at_the_size_that_was_asked_for(mini, output_type):
    def size(image):
        return image.size if output_type == "pil" else image.shape[1::-1]

    image = drawn(100, 74)
    for fit, keep, expected in (
        ("pad", True, (100, 74)), ("stretch", True, (100, 74)), ("pad", False, (64, 47)), ("stretch", False, (64, 48)),
    ):  # fmt: skip
        options = QUICK | {"resolution": 64, "fit": fit, "keep_size": keep, "output_type": output_type}
        result = mini.edit([image, image.rotate(90, expand=True)], "snow", **options)
        assert [size(one) for one in result.images] == [expected, expected[::-1]]
        assert result.boxes == [(0, 0, 100, 74), (0, 0, 74, 100)]


def test_each_result_of_a_server_has_its_own_box(mini):
    import asyncio

    async def serve():
        async with AsyncEngine(mini) as serving:
            sizes = ((64, 64), (100, 90))
            return await asyncio.gather(
                *(serving.edit(drawn(*size), "snow", resolution=64, fit="stretch", **QUICK) for size in sizes)
            )

    assert [result.boxes for result in asyncio.run(serve())] == [[(0, 0, 64, 64)], [(0, 0, 100, 90)]]


@pytest.mark.parametrize(("change", "argument"), [({"fit": "squeeze"}, "fit"), ({"keep_size": 1}, "keep_size")])
def test_bad_options_are_named(mini, change, argument):
    with pytest.raises(MRCError) as caught:
        mini.edit(drawn(64, 64), "snow", **QUICK | change)
    assert caught.value.argument == argument
