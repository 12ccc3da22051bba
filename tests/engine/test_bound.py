"""Copies between host and card, counted by a stand-in for ONNX Runtime's sessions (conftest.py)."""

import numpy as np
import pytest

from mrc_edit.engine import Engine
from mrc_edit.engine.backends.providers import CPU, CUDA, RTX, TENSORRT

EDIT = {"resolution": 0, "seed": 3, "guidance_scale": 3.0, "image_guidance_scale": 1.5, "output_type": "latent"}
# Once an edit. To the card: token ids, image, the conditioner's four inputs, the rows of texts and of rewards,
# branches, guidance. To the host: text states, pooled states, source latents.
TO_CARD, TO_HOST = 10, 3


@pytest.fixture
def card(computing_card):
    return computing_card


@pytest.fixture(scope="module")
def expected(photo):
    engine = Engine.from_pretrained("mini", provider=CPU)
    return {n: engine.edit(photo, "snow", num_inference_steps=n, **EDIT).images for n in (2, 5)}


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_step_copies_its_sample_to_the_card_and_its_noise_back(card, photo, expected, provider, steps):
    engine = Engine.from_pretrained("mini", provider=provider)
    card.copies.clear()
    images = engine.edit(photo, "snow", num_inference_steps=steps, **EDIT).images
    assert card.copies == {"to the card": TO_CARD + steps, "to the host": TO_HOST + steps}
    np.testing.assert_array_equal(images, expected[steps])


def test_the_image_adds_one_copy_each_way(card, photo):
    engine = Engine.from_pretrained("mini", provider=CUDA)
    card.copies.clear()
    engine.edit(photo, "snow", num_inference_steps=2, **EDIT | {"output_type": "np"})
    assert card.copies == {"to the card": TO_CARD + 2 + 1, "to the host": TO_HOST + 2 + 1}


def test_what_stays_the_same_in_an_edit_is_bound_once(card, photo):
    engine = Engine.from_pretrained("mini", provider=CUDA)
    card.bound.clear()
    engine.edit(photo, "snow", num_inference_steps=4, **EDIT)
    for name in ("text_kv", "branch", "guidance", "gate", "gate_bias", "base", "update"):
        assert card.bound[name] == 1, name
    assert card.bound["sample"] == card.bound["time_bias"] == 4


def test_the_conditions_never_come_to_the_host(card, photo, monkeypatch):
    """Nor with a lossy tier, whose groups of branches have rows of their own, and whose features stay too."""
    engine = Engine.from_pretrained("mini", provider=CUDA, tier="turbo", precision="float32")
    runs = []
    conditioner = engine.backend.conditioner
    monkeypatch.setattr(engine.backend, "conditioner", lambda **arrays: runs.append(conditioner(**arrays)) or runs[-1])
    card.copies.clear()
    images = engine.edit(photo, "snow", num_inference_steps=6, **EDIT).images
    assert all(value.data_ptr() in card.on_card for value in runs[0].values())
    steps = 2 * 6 - 3  # the group without text is left out of every second step
    assert card.copies["to the host"] == TO_HOST + steps
    plain = Engine.from_pretrained("mini", provider=CPU, tier="turbo", precision="float32")
    np.testing.assert_array_equal(images, plain.edit(photo, "snow", num_inference_steps=6, **EDIT).images)


def test_the_plug_in_has_its_constants_on_the_card(card, plugged, photo, expected):
    """The host takes the rows there, and each step's time bias is a copy of its own, all made before the first."""
    engine = Engine.from_pretrained("mini", provider=RTX)
    card.copies.clear()
    images = engine.edit(photo, "snow", num_inference_steps=5, **EDIT).images
    conditions = 6
    assert card.copies == {"to the card": 6 + 1 + 5 + (conditions - 1) + 1 + 5, "to the host": TO_HOST + conditions + 5}
    np.testing.assert_array_equal(images, expected[5])
