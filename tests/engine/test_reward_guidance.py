"""Guidance branches asked for rewards of their own, against one plain U-Net call a branch."""

import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.model.pipeline import encode_image, encode_text

LATENT = {"num_inference_steps": 3, "resolution": 0, "output_type": "latent", "seed": 3}
HIGH, LOW, MIXED = (5, 5, 5), (1, 1, 1), (0, 4.5, 2)
BACKENDS = pytest.mark.parametrize("backend", ["eager", "engine", "fused"])


@torch.no_grad()
def reference(engine, photo, instruction, rewards, guidance=7.5, image_guidance=1.5):
    """Latents of an edit whose three branches are asked for `rewards`, (scores, text) each."""
    checkpoint = engine.backend.checkpoint
    source = encode_image(checkpoint, torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1)
    generator = torch.Generator().manual_seed(LATENT["seed"])
    scheduler = checkpoint.scheduler
    scheduler.set_timesteps(LATENT["num_inference_steps"])
    latents = torch.randn(source.shape, generator=generator) * scheduler.init_noise_sigma
    branches = ((instruction, source), ("", source), ("", torch.zeros_like(source)))
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        with_text, with_image, with_none = (
            checkpoint.unet(
                torch.cat([scaled, image], dim=1),
                timestep,
                encode_text(checkpoint, [text])[0],
                reward_scores=torch.tensor([scores], dtype=torch.float32),
                reward_text_embeds=encode_text(checkpoint, [reward_text])[1],
            )
            for (text, image), (scores, reward_text) in zip(branches, rewards, strict=True)
        )
        guided = with_none + guidance * (with_text - with_image) + image_guidance * (with_image - with_none)
        latents = scheduler.step(guided, timestep, latents, generator=generator).prev_sample
    return latents.numpy()


@BACKENDS
@pytest.mark.parametrize(
    ("asked", "text", "image", "empty"),
    [
        ({"reward_guidance": LOW}, "snow", (LOW, "a"), (LOW, "a")),
        ({"reward_guidance": MIXED, "reward_guidance_text": "b"}, "snow", (MIXED, "b"), (MIXED, "b")),
        ({"reward_guidance": {"empty": LOW}}, "snow", (HIGH, "a"), (LOW, "a")),
        ({"reward_guidance": {"image": LOW, "empty": MIXED}}, "snow", (LOW, "a"), (MIXED, "a")),
        ({"reward_guidance_text": "b"}, "snow", (HIGH, "b"), (HIGH, "b")),
        ({"reward_guidance": LOW}, "", (LOW, "a"), (LOW, "a")),
    ],
)
def test_each_branch_is_asked_for_its_own(backend, asked, text, image, empty, request, eager, photo, error):
    found = request.getfixturevalue(backend).edit(photo, text, reward_text="a", **asked, **LATENT).images
    assert error(found, reference(eager, photo, text, ((HIGH, "a"), image, empty))) <= 1e-5
    unasked = request.getfixturevalue(backend).edit(photo, text, reward_text="a", **LATENT).images
    assert error(found, unasked) > 1e-4


@BACKENDS
def test_asking_for_the_same_changes_nothing(backend, request, photo):
    editor = request.getfixturevalue(backend)
    asked = {"reward_scores": MIXED, "reward_text": "a", **LATENT}
    plain = editor.edit(photo, "snow", **asked).images
    for same in ({"reward_guidance": MIXED}, {"reward_guidance": {"image": MIXED}, "reward_guidance_text": "a"}):
        np.testing.assert_array_equal(editor.edit(photo, "snow", **same, **asked).images, plain)


@pytest.mark.parametrize(("guidance", "image_guidance"), [(1, 1), (3, 1), (1.5, 1.5)])
def test_weightless_branches_ask_for_nothing(guidance, image_guidance, engine, eager, photo, error):
    scales = {"guidance_scale": guidance, "image_guidance_scale": image_guidance}
    found = engine.edit(photo, "snow", reward_guidance=LOW, reward_text="a", **scales, **LATENT).images
    expected = reference(eager, photo, "snow", ((HIGH, "a"), (LOW, "a"), (LOW, "a")), guidance, image_guidance)
    assert error(found, expected) <= 1e-5
    if guidance == image_guidance == 1:
        np.testing.assert_array_equal(found, engine.edit(photo, "snow", reward_text="a", **scales, **LATENT).images)


@BACKENDS
def test_a_batch_of_different_rewards(backend, request, photo, error):
    editor = request.getfixturevalue(backend)
    each = {
        "instruction": ["snow", "", "make the sky red", "snow"],
        "reward_scores": [HIGH, MIXED, HIGH, LOW],
        "reward_guidance": [None, LOW, {"empty": MIXED}, HIGH],
        "reward_guidance_text": [None, "b", None, "c"],
        "seed": [1, 2, 3, 4],
    }
    together = editor.edit(photo, **each, **{name: LATENT[name] for name in LATENT if name != "seed"}).images
    for i, latents in enumerate(together):
        alone = editor.edit(photo, **LATENT | {name: values[i] for name, values in each.items()}).images[0]
        assert error(latents, alone) <= 1e-5


def test_a_plain_checkpoint_refuses(plain, photo):
    for asked in ({"reward_guidance": LOW}, {"reward_guidance": {"image": LOW}}, {"reward_guidance_text": "x"}):
        with pytest.raises(MRCError, match="plain InstructPix2Pix"):
            Engine.from_pretrained(plain).edit(photo, "snow", **asked, **LATENT)


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"reward_guidance": (1, 1)}, "reward_guidance"),
        ({"reward_guidance": (1, 1, 6)}, "reward_guidance for quality"),
        ({"reward_guidance": {"image": (1, 1, float("nan"))}}, "reward_guidance for quality"),
        ({"reward_guidance": "111"}, "reward_guidance"),
        ({"reward_guidance": 1}, "reward_guidance"),
        ({"reward_guidance": {"text": LOW}}, "image, empty"),
        ({"reward_guidance": [LOW, LOW]}, "2 values of reward_guidance"),
        ({"reward_guidance_text": 1}, "reward_guidance_text"),
        ({"reward_guidance_text": ["a", "b"]}, "2 values of reward_guidance_text"),
    ],
)
def test_bad_rewards_of_branches(engine, photo, asked, word):
    with pytest.raises(MRCError, match=word):
        engine.edit(photo, "snow", **asked, **LATENT)
