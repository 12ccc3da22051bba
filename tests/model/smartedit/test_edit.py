"""A SmartEdit folder in the engine."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.core.fidelity import relative_error
from mrc_edit.engine import Engine
from mrc_edit.engine.framing import make_frame, seen
from mrc_edit.model import MRCUNet, load_checkpoint
from mrc_edit.model.checkpoint import write_weights
from mrc_edit.model.extend import add_rewards
from mrc_edit.model.seeded import seeded

OPTIONS = {"num_inference_steps": 2, "seed": 3, "resolution": 64, "output_type": "latent"}
BACKENDS = ["eager", "torch"]


@pytest.fixture(scope="module")
def engines(smartedit):
    return {name: Engine.from_pretrained(smartedit, name, precision="float32") for name in BACKENDS}


@pytest.fixture(scope="module")
def pictures():
    random = np.random.RandomState(0)
    return [Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)) for _ in range(2)]


def test_both_backends_agree(engines, pictures):
    eager, fused = (engines[name].edit(pictures, ["snow", "rain"], **OPTIONS).images for name in BACKENDS)
    assert relative_error(fused, eager) <= 1e-4


def test_an_edit_of_a_batch_is_the_edit_alone(engines, pictures):
    """The same instruction for two images is read beside each."""
    both = engines["eager"].edit(pictures, "snow", **OPTIONS | {"seed": [3, 3]}).images
    for picture, latents in zip(pictures, both, strict=True):
        alone = engines["eager"].edit(picture, "snow", **OPTIONS).images
        assert relative_error(latents, alone[0]) <= 1e-4


def test_image_instruction_and_both_parts_count(engines, pictures, monkeypatch):
    engine = engines["eager"]
    reader, edited = engine.backend.reader, engine.edit(pictures[0], "snow", **OPTIONS).images
    assert relative_error(engine.edit(pictures[0], "rain", **OPTIONS).images, edited) > 1e-3
    read = reader.read
    for part in (0, 1):
        monkeypatch.setattr(reader, "read", lambda part=part, **args: tuple(
            0 * value if i == part else value for i, value in enumerate(read(**args))))  # fmt: skip
        assert relative_error(engine.edit(pictures[0], "snow", **OPTIONS).images, edited) > 1e-3
    monkeypatch.setattr(reader, "read", read)
    assert np.array_equal(engine.edit(pictures[0], "snow", **OPTIONS).images, edited)


def test_a_pair_is_read_once(engines, pictures, monkeypatch):
    reader, calls = engines["eager"].backend.reader, []
    read = reader.read_pair
    monkeypatch.setattr(reader, "read_pair", lambda *args: calls.append(args[1]) or read(*args))
    result = engines["eager"].edit(pictures[0], "a new text", num_images_per_prompt=3, **OPTIONS | {"seed": [1, 2, 3]})
    assert len(result.images) == 3
    assert calls == ["a new text"]
    assert result.timings["read"] > 0


def test_guidance_branches_take_the_empty_text(engines, pictures):
    """Without guidance the empty text is not needed; an empty instruction is still read beside the image."""
    plain = engines["eager"].edit(pictures[0], "", guidance_scale=1, **OPTIONS).images
    guided = engines["eager"].edit(pictures[0], "", guidance_scale=7.5, image_guidance_scale=1, **OPTIONS).images
    assert relative_error(guided, plain) > 1e-3


def test_sizes_that_are_no_squares(engines):
    picture = Image.fromarray(np.random.RandomState(1).randint(0, 256, (64, 128, 3), dtype=np.uint8))
    for fit, shape in (("crop", (1, 4, 8, 16)), ("square", (1, 4, 16, 16)), ("pad", (1, 4, 8, 16))):
        latents = [engines[name].edit(picture, "snow", fit=fit, **OPTIONS | {"resolution": 128}).images
                   for name in BACKENDS]  # fmt: skip
        assert latents[0].shape == shape
        assert relative_error(latents[1], latents[0]) <= 1e-4


def test_the_reader_sees_what_is_edited():
    left_red = Image.new("RGB", (200, 100), "red")
    left_red.paste((0, 0, 255), (175, 0, 200, 100))
    frame = make_frame(200, 100, 128, 64, "square")
    whole = seen(left_red, left_red, frame, 8)
    assert whole.size == (8, 8)
    assert whole.getpixel((7, 4))[2] > 200
    cropped = seen(left_red, left_red, replace(frame, box=(50, 0, 150, 100)), 8)
    assert np.asarray(cropped)[..., 0].min() == 255  # the blue edge is not edited
    padded = make_frame(60, 40, 0, 64, "pad")
    edited = Image.new("RGB", padded.size, "green")
    assert seen(left_red, edited, padded, 8).getpixel((0, 0)) == (0, 128, 0)


def test_what_cannot_be_read_is_refused(engines, pictures):
    with pytest.raises(MRCError, match="<img_3>") as caught:
        engines["eager"].edit(pictures[0], "turn <img_3> red", **OPTIONS)
    assert caught.value.argument == "instruction"
    with pytest.raises(MRCError, match="shorten it"):
        engines["eager"].edit(pictures[0], "q x z " * 500, **OPTIONS)


def test_options(smartedit, tiny, pictures):
    for options, message in (
        ({"decode": "beam"}, "template, greedy, sample"),
        ({"llm_precision": "float16"}, "float32, bfloat16"),
        ({"template": 2}, "has 2"),
    ):
        with pytest.raises(MRCError, match=message):
            Engine.from_pretrained(smartedit, "eager", **options)
    with pytest.raises(MRCError, match="are for SmartEdit"):
        Engine.from_pretrained(tiny, "eager", decode="greedy")
    second = Engine.from_pretrained(smartedit, "eager", template=1, llm_precision="bfloat16")
    assert np.isfinite(second.edit(pictures[0], "snow", **OPTIONS).images).all()


@pytest.fixture(scope="module")
def rewarded(smartedit, tmp_path_factory):
    """The same with reward tensors in its U-Net."""
    folder = shutil.copytree(smartedit, tmp_path_factory.mktemp("rewarded") / "smartedit")
    plain = load_checkpoint(folder).unet
    config = {
        key: value for key, value in json.loads((folder / "unet/config.json").read_text()).items() if key[0] != "_"
    }
    unet = seeded(MRCUNet(rewards=True, feature_bias=True, **config))
    unet.load_state_dict(plain.state_dict(), strict=False)
    write_weights(unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


def test_new_reward_tensors_change_nothing_yet(smartedit):
    """Training with rewards begins with SmartEdit itself."""
    plain = load_checkpoint(smartedit).unet
    torch.manual_seed(0)
    sample, states, bias = torch.randn(2, 8, 8, 8), torch.randn(2, 77, 64), torch.randn(2, 32, 8, 8)
    rewarded = add_rewards(plain).eval()
    assert len(rewarded.state_dict()) == len(plain.state_dict()) + 34
    with torch.inference_mode():
        before = plain(sample, 500.0, states, feature_bias=bias)
        after = rewarded(sample, 500.0, states, torch.tensor([[5.0, 1.0, 2.0]] * 2), torch.randn(2, 64), bias)
    assert relative_error(after.numpy(), before.numpy()) <= 1e-6


def test_rewards_work_on_it(rewarded, pictures):
    edits = {}
    for name in BACKENDS:
        engine = Engine.from_pretrained(rewarded, name, precision="float32")
        for scores, text in (((5, 5, 5), None), ((1, 2, 3), None), ((5, 5, 5), "None; the sky changed; None")):
            result = engine.edit(pictures[0], "snow", reward_scores=scores, reward_text=text, **OPTIONS)
            edits[name, scores, text] = result.images
    best, low, text = (edits["eager", *key] for key in [key[1:] for key in edits][:3])
    assert relative_error(low, best) > 1e-4
    assert relative_error(text, best) > 1e-4
    for key in [key[1:] for key in edits]:
        assert relative_error(edits["torch", *key], edits["eager", *key]) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_released_edit_from_picture_to_image(released_smartedit, released_golden, backend):
    arrays = np.load(released_golden / "edit_tiny.npz")
    config = json.loads(str(arrays["config"]))
    engine = Engine.from_pretrained(released_smartedit, backend, decode="greedy", precision="float32")
    steps = []
    result = engine.edit(
        arrays["source"],
        config["instruction"],
        seed=config["seed"],
        num_inference_steps=config["steps"],
        resolution=64,
        fit="square",
        output_type="np",
        callback_on_step_end=lambda engine, step, time, state: steps.append(state["latents"]),
    )
    features, queries = next(iter(engine.backend.reader.read_before.values.values()))
    assert relative_error(features.numpy(), arrays["clip_features"][0]) <= 1e-5
    assert relative_error(queries.numpy(), arrays["q"][0]) <= 1e-5
    with torch.inference_mode():
        text, image = engine.backend.reader.model.bim(features[None], queries[None], 8, 8)
    assert relative_error(text.numpy(), arrays["bim_text"]) <= 1e-5
    assert relative_error(image.numpy(), arrays["bim_image"]) <= 1e-5
    assert max(relative_error(a, b) for a, b in zip(steps, arrays["latents"], strict=True)) <= 1e-5
    assert relative_error(result.images[0], arrays["image"][0]) <= 1e-5
