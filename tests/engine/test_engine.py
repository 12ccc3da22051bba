"""Whole edits: against the eager pipeline, against themselves, and with bad arguments."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.backends.torch import TorchLoop
from mrc_edit.model.pipeline import decode_latents, edit_latents

STEPS = {"num_inference_steps": 4, "resolution": 0}
LATENT = {**STEPS, "output_type": "latent"}


def pipeline_latents(engine, photo, text, seed, **options):
    image = torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1
    return edit_latents(
        engine.backend.checkpoint,
        image,
        [text],
        [torch.Generator().manual_seed(seed)],
        num_inference_steps=4,
        **options,
    ).numpy()


@pytest.mark.parametrize("backend", ["eager", "engine", "fused"])
@pytest.mark.parametrize("scores", [(5, 5, 5), (1, 4.5, 0)])
def test_an_edit_is_the_pipelines(backend, scores, request, eager, photo, error):
    found = request.getfixturevalue(backend).edit(
        photo, "make it snow", seed=3, reward_scores=scores, reward_text="a; b; c", guidance_scale=5, **LATENT
    )
    expected = pipeline_latents(
        eager, photo, "make it snow", 3, reward_scores=scores, reward_text="a; b; c", guidance_scale=5
    )
    assert error(found.images, expected) <= 1e-4


def test_rewards_change_the_edit(engine, photo, error):
    best = engine.edit(photo, "snow", seed=3, **LATENT).images
    for change in ({"reward_scores": (0, 5, 5)}, {"reward_scores": (5, 5, 4)}, {"reward_text": "blurry; None; None"}):
        assert error(engine.edit(photo, "snow", seed=3, **change, **LATENT).images, best) > 1e-4


def test_decoding_is_the_pipelines(engine, eager, photo):
    latents = engine.edit(photo, "snow", seed=3, **LATENT).images
    image = engine.edit(photo, "snow", seed=3, output_type="np", **STEPS).images[0]
    expected = decode_latents(eager.backend.checkpoint, torch.from_numpy(latents))[0].permute(1, 2, 0) / 2 + 0.5
    np.testing.assert_allclose(image, expected.clamp(0, 1).numpy(), atol=1e-4)
    pil = engine.edit(photo, "snow", seed=3, **STEPS).images[0]
    np.testing.assert_array_equal(np.asarray(pil), (image * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [("euler", "EulerDiscrete"), ("ddim", "DDIM"), ("dpmpp_2m", "DPMSolverMultistep")],
)
def test_other_schedulers_are_those_of_diffusers(engine, eager, photo, scheduler, kind, error):
    """Made of the checkpoint's settings, whose absent ones take the defaults of the other class: DDIM clips."""
    own = eager.backend.checkpoint.scheduler.config
    other = getattr(diffusers, f"{kind}Scheduler").from_config(own)
    expected = pipeline_latents(eager, photo, "snow", 3, scheduler=other)
    for editor in (engine, eager):
        found = editor.edit(photo, "snow", seed=3, scheduler=scheduler, **LATENT).images
        assert error(found, expected) <= 1e-4


def test_a_batch_gives_what_its_items_give_alone(engine, photo, error):
    images = [photo, photo[::-1].copy(), photo]
    texts = ["snow", "", "make the sky red"]
    scores = [(5, 5, 5), (0, 1, 2), (3, 3, 3)]
    seeds = [1, 2, 3]
    together = engine.edit(images, texts, reward_scores=scores, seed=seeds, **LATENT)
    assert together.seed == seeds
    for i in range(3):
        alone = engine.edit(images[i], texts[i], reward_scores=scores[i], seed=seeds[i], **LATENT)
        assert error(together.images[i], alone.images[0]) <= 1e-5


def test_images_of_different_sizes_in_one_batch(engine, photo, error):
    images = [photo, photo[:64], photo[:, :48]]
    together = engine.edit(images, "snow", seed=5, **LATENT).images
    assert [latents.shape for latents in together] == [(4, 16, 8), (4, 8, 8), (4, 16, 6)]
    for image, latents in zip(images, together, strict=True):
        assert error(latents, engine.edit(image, "snow", seed=5, **LATENT).images[0]) <= 1e-5


@pytest.mark.parametrize("guidance", [(7.5, 1.0), (1.5, 1.5), (1.0, 1.0)])
@pytest.mark.parametrize("backend", ["eager", "engine"])
def test_dropped_branches_change_nothing(backend, guidance, request, eager, photo, error):
    """Against the pipeline, which always computes all three."""
    text, image = guidance
    found = request.getfixturevalue(backend).edit(
        photo, "snow", seed=3, guidance_scale=text, image_guidance_scale=image, **LATENT
    )
    expected = pipeline_latents(eager, photo, "snow", 3, guidance_scale=text, image_guidance_scale=image)
    assert error(found.images, expected) <= 1e-5


def test_the_same_seed_gives_the_same_edit_and_none_reports_one(engine, photo):
    first = engine.edit(photo, "snow", **LATENT)
    again = engine.edit(photo, "snow", seed=first.seed, **LATENT)
    np.testing.assert_array_equal(first.images, again.images)
    assert engine.edit(photo, "snow", **LATENT).seed != first.seed


@pytest.mark.slow
def test_a_plain_checkpoint_edits_as_diffusers_does(plain, plain_export, photo, error):
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(plain, safety_checker=None)
    expected = pipe(
        "make it snow", Image.fromarray(photo), num_inference_steps=4, guidance_scale=7.5, image_guidance_scale=1.5,
        generator=torch.Generator().manual_seed(9), output_type="latent",
    ).images.numpy()  # fmt: skip
    for folder in (plain, plain_export):
        editor = Engine.from_pretrained(folder)
        assert error(editor.edit(photo, "make it snow", seed=9, **LATENT).images, expected) <= 1e-4
        for rewards in ({"reward_scores": (5, 5, 4)}, {"reward_text": "x"}):
            with pytest.raises(MRCError, match="plain InstructPix2Pix"):
                editor.edit(photo, "make it snow", **rewards, **LATENT)


def test_the_callback_sees_every_step_and_may_replace_latents(engine, photo):
    seen = []

    def zero_at_last(engine, step, timestep, tensors):
        seen.append((step, timestep, tensors["latents"].shape))
        return {"latents": np.zeros_like(tensors["latents"])} if step == 3 else None

    result = engine.edit(photo, "snow", seed=3, callback_on_step_end=zero_at_last, **LATENT)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1:] == (999.0, (1, 4, 16, 8))
    assert not result.images.any()


@pytest.mark.parametrize("loop", [False, True])
def test_latents_that_a_callback_keeps_stay_those_of_their_step(photo, loop):
    """And changing them without returning them changes nothing."""
    engine = Engine.from_pretrained("mini", "torch", precision="float32")
    engine.backend.device_loop = TorchLoop(engine.backend.device) if loop else None
    kept, copies = [], []

    def keep(engine, step, timestep, tensors):
        kept.append(tensors["latents"])
        copies.append(tensors["latents"].copy())

    def spoil(engine, step, timestep, tensors):
        tensors["latents"][:] = 7

    expected = engine.edit(photo, "snow", seed=3, scheduler="euler", callback_on_step_end=keep, **LATENT).images
    assert all(np.array_equal(array, copy) for array, copy in zip(kept, copies, strict=True))
    spoiled = engine.edit(photo, "snow", seed=3, scheduler="euler", callback_on_step_end=spoil, **LATENT).images
    np.testing.assert_array_equal(spoiled, expected)


def test_replaced_latents_enter_the_next_step(engine, photo, error):
    """Restarting from the latents of another run gives that run's end."""
    kept = []

    def keep(engine, step, timestep, tensors):
        kept.append(tensors["latents"].copy())

    other = engine.edit(photo, "snow", seed=8, scheduler="euler", callback_on_step_end=keep, **LATENT).images
    found = engine.edit(
        photo, "snow", seed=3, scheduler="euler",
        callback_on_step_end=lambda e, i, t, k: {"latents": kept[1]} if i == 1 else None, **LATENT,
    ).images  # fmt: skip
    assert error(found, other) <= 1e-6


def test_timings_cover_the_edit(engine, photo):
    result = engine.edit(photo, "snow", seed=3, **STEPS)
    assert set(result.timings) == {"text", "encode", "condition", "denoise", "decode"}
    assert len(result.step_seconds) == 4
    assert sum(result.step_seconds) <= result.timings["denoise"] * 1.01


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"image": None}, "image"),
        ({"image": []}, "image"),
        ({"image": [], "instruction": []}, "empty"),
        ({"callback_on_step_end": lambda *_: {"latents": np.zeros((1, 4, 2, 2))}, "resolution": 0}, "callback"),
        ({"instruction": None}, "instruction"),
        ({"instruction": ["a", "b"], "image": ["x"] * 3}, "exist|batch"),
        ({"reward_scores": (5, 5)}, "reward_scores"),
        ({"reward_scores": (5, 5, 6)}, "quality"),
        ({"reward_scores": [(5, 5, 5), (5, 5, 5)]}, "reward_scores"),
        ({"reward_text": 3}, "reward_text"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"image_guidance_scale": 0}, "image_guidance_scale"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"scheduler": "heun"}, "scheduler"),
        ({"scheduler": ["euler"]}, "scheduler"),
        ({"seed": 1.5}, "seed"),
        ({"seed": [1, 2]}, "seed"),
        ({"resolution": 10}, "resolution"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"callback_on_step_end": lambda *_: [1]}, "dictionary"),
        ({"callback_on_step_end": lambda *_: {"latents": "x"}}, "as latents"),
        ({"callback_on_step_end": lambda *_: {"latents": [[1], [1, 2]]}}, "as latents"),
        ({"callback_on_step_end": lambda *a: {"latents": a[3]["latents"] * np.nan}}, "the callback gave NaN"),
        ({"guidance_scale": 10**400}, "guidance_scale"),
        ({"reward_scores": (10**400, 1, 1)}, "reward_scores"),
        ({"reward_scores": np.array(5)}, "reward_scores"),
        ({"reward_text": "\ud800"}, "reward_text"),
    ],
)
def test_bad_arguments(engine, photo, arguments, word):
    with pytest.raises(MRCError, match=word):
        engine.edit(**({"image": photo, "instruction": "snow"} | arguments))


def test_an_own_size_that_the_unet_cannot_halve_is_refused(engine, photo):
    with pytest.raises(MRCError, match=r"64×120.*multiples of 16"):
        engine.edit(photo[:120], "snow", resolution=0)


def test_a_phase_that_overflows_is_named(tiny, photo):
    editor = Engine.from_pretrained(tiny)
    editor.backend.checkpoint.unet.conv_out.bias.fill_(float("inf"))
    with pytest.raises(MRCError, match="unet at step 1 of 4"):
        editor.edit(photo, "snow", **STEPS)
    editor.backend.checkpoint.vae.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(MRCError, match="vae_encoder"):
        editor.edit(photo, "snow", **STEPS)


@pytest.mark.slow
def test_golden_edit_of_the_released_implementation(slim, reference, error, tmp_path):
    """`edit_slim.npz`: 8 Euler-ancestral steps, eager and ONNX Runtime alike."""
    from mrc_edit.export.exporter import export

    golden = np.load(reference / "edit_slim.npz")
    export(slim, tmp_path / "exported")
    for folder in (slim, tmp_path / "exported"):
        editor = Engine.from_pretrained(folder)
        arguments = {
            "reward_scores": golden["reward_scores"], "reward_text": str(golden["reward_text"]),
            "num_inference_steps": int(golden["steps"]), "seed": int(golden["seed"]), "resolution": 0,
            "guidance_scale": float(golden["guidance_scale"]),
            "image_guidance_scale": float(golden["image_guidance_scale"]),
        }  # fmt: skip
        edit = editor.edit(golden["image"], str(golden["instruction"]), output_type="latent", **arguments)
        assert error(edit.images, golden["latents"]) <= 1e-4
        image = np.asarray(editor.edit(golden["image"], str(golden["instruction"]), **arguments).images[0])
        assert np.abs(image.astype(int) - golden["decoded"]).max() <= 1
