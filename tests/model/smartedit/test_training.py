"""Training of a SmartEdit folder, from the cache of its states to edits with what it gave."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.model import load_checkpoint
from mrc_edit.model.extend import add_rewards
from mrc_edit.model.smartedit.trained import frozen_digest
from mrc_edit.train import grid
from mrc_edit.train.config import TrainConfig
from mrc_edit.train.loop import train

LATENT = {"num_inference_steps": 2, "seed": 3, "resolution": 64, "output_type": "latent"}


@pytest.fixture(scope="module")
def base(smartedit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smartedit-runs")
    return TrainConfig(
        init=str(smartedit), data="miniature:8", out=str(folder / "out"), cache=str(folder / "cache"), resolution=64,
        batch_size=4, steps=10, checkpoint_every=5, learning_rate=1e-3, workers=0, tracker="", warmup=2,
        validate_every=10, augment=False, train_bim=True, train_qformer=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(base):
    """Ten steps of stage 2, in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "STEPS", 2)
        train(base)
    return Path(base.out) / "checkpoint"


@pytest.fixture(scope="module")
def picture():
    random = np.random.RandomState(0)
    return Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64))


def weights(folder, part):
    (path,) = (folder / part).glob("*.safetensors")
    return safetensors.torch.load_file(path)


def changed(first, second, part):
    one, other = weights(first, part), weights(second, part)
    return one.keys() != other.keys() or any(not torch.equal(one[key], other[key]) for key in one)


def test_what_is_trained_changes_and_the_rest_is_copied(smartedit, trained):
    assert all(changed(Path(smartedit), trained, part) for part in ("unet", "qformer", "bim"))
    assert not any(changed(Path(smartedit), trained, part) for part in ("vision", "projector", "llm", "vae"))
    assert frozen_digest(trained) == frozen_digest(Path(smartedit))


def test_the_trained_folder_edits_by_its_rewards(smartedit, trained, picture):
    engine = Engine.from_pretrained(trained, "eager")
    best, worst = (engine.edit(picture, "snow", reward_scores=3 * (s,), **LATENT).images for s in (5, 0))
    before = Engine.from_pretrained(smartedit, "eager").edit(picture, "snow", **LATENT).images
    assert np.abs(best - worst).max() > 1e-4 and np.abs(best - before).max() > 1e-3


def test_rewards_change_nothing_at_step_0(smartedit):
    """So training starts at SmartEdit exactly."""
    plain = load_checkpoint(smartedit).unet
    rewarded = add_rewards(plain).eval()
    random = torch.Generator().manual_seed(0)
    sample, states, bias = (
        torch.randn(shape, generator=random)
        for shape in ((1, 8, 8, 8), (1, 77, plain.config.cross_attention_dim), (1, plain.conv_in.out_channels, 8, 8))
    )
    rewards = torch.tensor([[5.0, 0.0, 2.5]]), torch.randn((1, states.shape[2]), generator=random)
    with torch.no_grad():
        expected = plain(sample, torch.tensor(7), states, feature_bias=bias)
        assert torch.equal(rewarded(sample, torch.tensor(7), states, *rewards, bias), expected)


def test_a_resumed_run_ends_as_an_undisturbed_one(base, trained, tmp_path):
    stopped = replace(base, out=str(tmp_path / "out"), steps=5, validate_every=0)
    train(stopped)
    train(replace(stopped, steps=10), resume="latest")
    for part in ("unet", "qformer", "bim"):
        assert not changed(tmp_path / "out" / "checkpoint", trained, part), part


def test_without_the_switches_only_the_unet_is_trained(smartedit, base, trained, tmp_path):
    """`trained` made the cache: the language model is not needed again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mrc_edit.train.inputs.reader", None)
        out = train(replace(base, out=str(tmp_path), steps=1, validate_every=0, train_bim=False, train_qformer=False))
    assert changed(Path(smartedit), out, "unet")
    assert not any(changed(Path(smartedit), out, part) for part in ("qformer", "bim"))
    assert "smartedit" in json.loads((out / "smartedit.json").read_text())["kind"]


def test_settings_that_cannot_be(base, plain, tmp_path):
    with pytest.raises(MRCError, match="give --cache"):
        train(replace(base, out=str(tmp_path / "a"), cache=None))
    with pytest.raises(MRCError, match=r"train_bim is set, and .* is no SmartEdit folder"):
        train(replace(base, out=str(tmp_path / "b"), init=str(plain), train_qformer=False))
