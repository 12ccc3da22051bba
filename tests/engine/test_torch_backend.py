import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.backends.torch import TorchLoop
from mrc_edit.kernels import ops

LATENT = {"num_inference_steps": 3, "resolution": 0, "output_type": "latent", "seed": 3}


def on_device(folder):
    """An engine whose latents stay on the device, as they do by default on a card."""
    engine = Engine.from_pretrained(folder, "torch")
    engine.backend.device_loop = TorchLoop(engine.backend.device)
    return engine


def test_the_kernels_change_nothing(fused, photo, error):
    found = fused.edit(photo, "make it snow", **LATENT).images
    with ops.reference_kernels():
        expected = fused.edit(photo, "make it snow", **LATENT).images
    assert error(found, expected) <= 1e-5
    assert not np.array_equal(found, expected)  # the switch did switch


def test_a_batch_is_what_its_images_are_alone(fused, photo, error):
    options = LATENT | {"seed": [1, 2]}
    rewards = {"reward_scores": [(5, 5, 5), (1, 2, 3)]}
    both = fused.edit([photo, photo[::-1].copy()], ["snow", "rain"], **rewards, **options).images
    alone = fused.edit(photo[::-1].copy(), "rain", reward_scores=(1, 2, 3), **LATENT | {"seed": 2}).images
    assert error(both[1:], alone) <= 1e-5


def test_a_plain_model_edits(plain, photo, error):
    pair = [Engine.from_pretrained(plain, name).edit(photo, "snow", **LATENT).images for name in ("torch", "eager")]
    assert error(*pair) <= 1e-4


def test_bfloat16_is_near(tiny, eager, photo, error):
    found = Engine.from_pretrained(tiny, "torch", precision="bfloat16").edit(photo, "snow", **LATENT).images
    assert 1e-4 < error(found, eager.edit(photo, "snow", **LATENT).images) < 0.1


@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral", "ddim", "dpmpp_2m"])
def test_latents_that_stay_on_the_device_are_those_of_the_loop(tiny, fused, photo, error, scheduler):
    staying = on_device(tiny)
    asked = LATENT | {"seed": [1, 2], "scheduler": scheduler, "reward_scores": [(5, 5, 5), (1, 4, 2)]}
    pair = [engine.edit([photo, photo[::-1]], ["snow", ""], **asked).images for engine in (staying, fused)]
    assert error(*pair) <= 1e-5


def test_a_callback_may_change_latents_that_stay_on_the_device(tiny, fused, photo, error):
    """What it returns is used as in the host's loop, and a wrong shape is refused."""

    def halve(engine, step, timestep, tensors):
        return {"latents": tensors["latents"] / 2} if step == 1 else None

    staying = on_device(tiny)
    results = [engine.edit(photo, "snow", callback_on_step_end=halve, **LATENT) for engine in (staying, fused)]
    assert error(*(result.images for result in results)) <= 1e-5
    assert len(results[0].step_seconds) == len(results[1].step_seconds) == 3
    with pytest.raises(MRCError, match="callback returned latents"):
        staying.edit(photo, "snow", callback_on_step_end=lambda *_: {"latents": np.zeros(3)}, **LATENT)


def test_a_plain_model_stays_on_the_device(plain, photo, error):
    engines = on_device(plain), Engine.from_pretrained(plain, "torch")
    pair = [engine.edit(photo, "snow", **LATENT) for engine in engines]
    assert error(*(result.images for result in pair)) <= 1e-5


@pytest.mark.parametrize(("precision", "word"), [("int8", "float32, bfloat16"), ("float16", "slowly on a CPU")])
def test_precisions_it_does_not_have(tiny, precision, word):
    if torch.cuda.is_available() and precision == "float16":
        pytest.skip("a GPU computes float16")
    with pytest.raises(MRCError, match=word):
        Engine.from_pretrained(tiny, "torch", precision=precision)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_recorded_step_is_replayed_with_new_inputs(fused, eager, photo, error):
    for text in ("snow", "rain", "snow"):
        pair = [engine.edit(photo, text, **LATENT).images for engine in (fused, eager)]
        assert error(*pair) <= 1e-3  # TF32 convolutions
