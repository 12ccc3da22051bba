"""Calls written for diffusers' StableDiffusionInstructPix2PixPipeline give its edits."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from mrc_edit import Engine, MRCError

STEPS = {"num_inference_steps": 3, "guidance_scale": 7.5, "image_guidance_scale": 1.5}


@pytest.fixture(scope="module")
def pipe(plain):
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(plain, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def editor(plain):
    return Engine.from_pretrained(plain, "eager")


@pytest.fixture
def call(pipe, editor, photo, error):
    """The same call of both, with generators made anew → ours, and its error."""

    def both(make_generator=lambda: torch.Generator().manual_seed(4), **arguments):
        arguments = STEPS | {"prompt": "make it snow", "image": Image.fromarray(photo), "output_type": "pt"} | arguments
        theirs, ours = make_generator(), make_generator()
        expected = pipe(**arguments, generator=theirs).images
        found = editor.edit(**arguments, generator=ours, resolution=0).images
        assert error(np.asarray(found), np.asarray(expected)) <= 1e-4
        for one, other in zip(*([g] if not isinstance(g, list) else g for g in (ours, theirs)), strict=True):
            assert torch.equal(torch.randn(40, generator=one), torch.randn(40, generator=other))
        return found

    return both


def test_one_prompt(call):
    found = call()
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float32 and found.shape == (1, 3, 128, 64)


@pytest.mark.parametrize(
    "arguments",
    [
        {"negative_prompt": "blurry"},
        {"num_images_per_prompt": 3},
        {"num_images_per_prompt": 2, "negative_prompt": "blurry", "output_type": "latent"},
        {"prompt": ["make it snow", "a dog"], "negative_prompt": ["", "rain"], "num_images_per_prompt": 2},
        {"guidance_scale": 1.0},
        {"guidance_scale": 1.0, "image_guidance_scale": 1.0, "negative_prompt": "blurry"},
        {"image_guidance_scale": 1.0},
    ],
    ids=lambda arguments: ",".join(arguments),
)
def test_arguments_mean_what_they_mean_in_diffusers(call, arguments):
    call(**arguments)


def test_a_generator_goes_on_where_it_stands(call):
    def used():
        generator = torch.Generator().manual_seed(7)
        torch.randn(7 * 16, generator=generator)
        return generator

    call(used)


@pytest.mark.parametrize("used", [0, 16, 608, 624, 640])
def test_a_generator_stands_anywhere(call, used):
    def at():
        generator = torch.Generator().manual_seed(2**40 + 3)
        if used:
            torch.rand(used, generator=generator)
        return generator

    call(at, num_inference_steps=1)


def test_one_generator_an_image(call):
    call(lambda: [torch.Generator().manual_seed(s) for s in (5, 6)], num_images_per_prompt=2)


def test_a_fresh_generator_is_its_seed(editor, photo):
    options = STEPS | {"resolution": 0, "output_type": "latent"}
    drawn = editor.edit(photo, "snow", generator=torch.Generator().manual_seed(11), **options)
    seeded = editor.edit(photo, "snow", seed=11, **options)
    np.testing.assert_array_equal(drawn.images, seeded.images)
    assert (drawn.seed, seeded.seed) == (None, 11)


def test_many_images_of_a_prompt_have_seeds_of_their_own(editor, photo):
    options = STEPS | {"resolution": 0, "output_type": "latent"}
    result = editor.edit(photo, "snow", num_images_per_prompt=2, seed=[3, 4], **options)
    assert result.seed == [3, 4]
    np.testing.assert_array_equal(result.images, editor.edit([photo, photo], "snow", seed=[3, 4], **options).images)
    assert len(set(editor.edit(photo, "snow", num_images_per_prompt=2, **options).seed)) == 2


@pytest.mark.parametrize(
    ("change", "argument", "word"),
    [
        ({"prompt": "rain"}, "instruction", "both"),
        ({"instruction": None}, "instruction", "neither"),
        ({"generator": torch.Generator(), "seed": 3}, "generator", "both"),
        ({"generator": [torch.Generator()] * 3}, "generator", "3 generators"),
        ({"generator": 5}, "generator", "torch.Generator"),
        ({"generator": np.random.default_rng()}, "generator", "torch.Generator"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt", "whole number"),
        ({"num_images_per_prompt": 2, "seed": 5}, "seed", "equal images"),
        ({"negative_prompt": 5}, "negative_prompt", "give a text"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt", "batch"),
        ({"negative_prompt": "snow \ud83d"}, "negative_prompt", "UTF-8"),
        ({"instruction": "snow \ud83d"}, "instruction", "UTF-8"),
    ],
)
def test_what_contradicts_itself_is_refused(editor, photo, change, argument, word):
    with pytest.raises(MRCError, match=word) as caught:
        editor.edit(**{"image": photo, "instruction": "snow", "num_inference_steps": 1} | change)
    assert caught.value.argument == argument


def test_output_types_are_those_of_diffusers_image_processor(editor, photo, pipe):
    generator = torch.Generator().manual_seed(1)
    arguments = STEPS | {"image": Image.fromarray(photo), "prompt": "snow"}
    for kind in ("np", "pil"):
        found = editor.edit(**arguments, output_type=kind, seed=1, resolution=0).images[0]
        expected = pipe(**arguments, output_type=kind, generator=generator.manual_seed(1)).images[0]
        assert type(found) is type(expected)
        np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(expected, np.float32), atol=1.01)


def test_the_engine_has_every_name_but_those_of_modules_it_has_not(pipe):
    theirs = set(inspect.signature(type(pipe).__call__).parameters) - {"self", "kwargs"}
    from mrc_edit.engine.request import EditOptions

    ours = set(inspect.signature(Engine.edit).parameters) | set(EditOptions.__annotations__)
    assert theirs - ours == {
        "callback_on_step_end_tensor_inputs",
        "cross_attention_kwargs",
        "eta",
        "ip_adapter_image",
        "ip_adapter_image_embeds",
        "latents",
        "negative_prompt_embeds",
        "prompt_embeds",
        "return_dict",
    }
