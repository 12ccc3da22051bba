"""Runs as a whole: what they learn, by how many processes and passes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint
from mrc_edit.model.rewards import REWARD_KEYS
from mrc_edit.train.loop import train
from mrc_edit.train.setup import starting_point
from mrc_edit.train.state import list_states


def test_both_stages_write_checkpoints_that_load(base, undisturbed, stage1):
    stage2 = load_checkpoint(undisturbed / "checkpoint")
    assert stage2.unet.rewards
    start = starting_point(base)
    for part, moves in (("unet", True), ("vae", False), ("text_encoder", False)):
        before = getattr(start, part).state_dict()
        for key, value in getattr(stage2, part).state_dict().items():
            assert torch.equal(value, before[key]) != moves, f"{part}.{key}"
    record = json.loads((undisturbed / "training.json").read_text())
    assert record["config"]["seed"] == 0 and record["versions"]["torch"] == torch.__version__
    assert not load_checkpoint(stage1 / "checkpoint").unet.rewards


def test_a_stage_two_checkpoint_serves_diffusers_without_its_rewards(undisturbed):
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        str(undisturbed / "checkpoint"), safety_checker=None, feature_extractor=None
    )
    ours = load_checkpoint(str(undisturbed / "checkpoint")).unet.state_dict()
    theirs = pipeline.unet.state_dict()
    assert theirs.keys() == {key for key in ours if not key.startswith(REWARD_KEYS)}
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    edited = pipeline("snow", image=torch.zeros(1, 3, 64, 64), num_inference_steps=1, output_type="np").images
    assert edited.shape == (1, 64, 64, 3) and np.isfinite(edited).all()


@pytest.fixture(scope="module")
def one_process(base, tmp_path_factory):
    """A longer run of stage 1 by one process."""
    config = replace(base, stage=1, steps=20, checkpoint_every=20, out=str(tmp_path_factory.mktemp("runs") / "one"))
    train(config)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_train_as_one_with_twice_the_batch(base, one_process, shard, train_by_two, tmp_path, losses_of):
    alone = load_checkpoint(Path(one_process.out) / "checkpoint").unet.state_dict()
    two = replace(one_process, shard=shard, validate_every=7, cache=str(tmp_path / "cache"), out=str(tmp_path / "two"))
    train_by_two(replace(two, steps=8))
    train_by_two(two, "latest")
    losses = np.array([losses_of(Path(out)) for out in (one_process.out, two.out)])
    assert losses.shape == (2, 20)
    assert np.abs(losses[0] - losses[1]).max() <= 1e-4 * losses[0].max()
    together = load_checkpoint(tmp_path / "two" / "checkpoint").unet.state_dict()
    start = load_checkpoint(base.init).unet.state_dict()
    apart, moved = (
        sum((other[key] - value).square().sum() for key, value in alone.items()) ** 0.5 for other in (together, start)
    )
    assert apart <= 0.05 * moved


def test_accumulated_passes_are_one_step(base, stage1, tmp_path, losses_of):
    train(replace(base, stage=1, steps=3, accumulation=2, out=str(tmp_path / "o")))
    assert np.allclose(losses_of(tmp_path / "o"), losses_of(stage1)[:3], rtol=1e-4)


def test_pixels_and_texts_train_as_their_cached_latents_and_states(base, undisturbed, tmp_path, losses_of):
    train(replace(base, steps=2, cache=None, out=str(tmp_path / "pixels")))
    assert np.allclose(losses_of(tmp_path / "pixels"), losses_of(undisturbed)[:2], rtol=2e-3)  # a float16 cache
    for change in ({"resolution": 32}, {"seed": 5}):
        with pytest.raises(MRCError, match="was made from"):
            train(replace(base, out=str(tmp_path / "other"), **change))
    (tmp_path / "things").mkdir()
    with pytest.raises(MRCError, match="no cache"):
        train(replace(base, cache=str(tmp_path / "things"), out=str(tmp_path / "other")))


def test_half_precision_trains_on_the_same_latents(base, undisturbed, tmp_path):
    """float16 would overflow in the VAE of Stable Diffusion 1.5."""
    train(replace(base, steps=1, mixed_precision="bf16", cache=str(tmp_path / "cache"), out=str(tmp_path / "half")))
    for name in ("source.npy", "edited.npy"):
        assert np.array_equal(np.load(tmp_path / "cache" / name), np.load(Path(base.cache) / name))


def test_gradients_are_clipped_to_their_norm(base, tmp_path, tensors_of):
    """Adam does not see the scale of a gradient but its step after a much larger one does."""
    moved = {}
    for norm in (1e9, 1e-9):
        config = replace(base, stage=1, steps=1, warmup=0, max_grad_norm=norm, out=str(tmp_path / str(norm)))
        train(config)
        moments = {k: v for k, v in tensors_of(list_states(Path(config.out))[-1]).items() if k.endswith("exp_avg")}
        moved[norm] = sum(v.square().sum() for v in moments.values()) ** 0.5
    assert moved[1e-9] == pytest.approx(0.1 * 1e-9, rel=1e-2)  # exp_avg is a tenth of the first gradient
    assert moved[1e9] > 1e3 * moved[1e-9]


def test_timesteps_are_drawn_by_their_power(base, stage1, tmp_path, losses_of):
    train(replace(base, stage=1, steps=1, timestep_power=3.0, out=str(tmp_path / "noisy")))
    assert losses_of(tmp_path / "noisy")[0] != losses_of(stage1)[0]


def test_checkpointed_gradients_are_the_same(base, undisturbed, tmp_path, losses_of):
    train(replace(base, gradient_checkpointing=True, steps=3, out=str(tmp_path / "o")))
    assert np.allclose(losses_of(tmp_path / "o"), losses_of(undisturbed)[:3], rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_ids(base, tmp_path):
    with pytest.raises(MRCError, match="not_finite"):
        train(replace(base, stage=1, learning_rate=1e30, warmup=0, max_grad_norm=1e30, out=str(tmp_path / "nan")))
    saved = json.loads((tmp_path / "nan" / "not_finite.json").read_text())
    assert len(saved["ids"]) == 4 and saved["ids"][0].startswith("miniature-0-") and "nan" in saved["what"]
    assert not (tmp_path / "nan" / "states").exists()


@pytest.fixture(scope="module")
def mixed_folders(tmp_path_factory):
    """Four triplets: one broken, one of two sizes."""
    from mrc_edit.train.data import open_data
    from mrc_edit.train.data.writers import write_triplets

    drawn = open_data("miniature:4")
    folder = tmp_path_factory.mktemp("data") / "mixed"
    pairs = [drawn[0], drawn[1], replace(drawn[2], edited=drawn[2].edited.resize((80, 70))), drawn[3]]
    write_triplets([replace(pair, scores=None, reward_text=None) for pair in pairs], folder, "folders")
    (folder / "0000001" / "0_1.jpg").write_bytes(b"no picture")
    return folder


def test_samples_left_out_and_resized_are_named_and_counted(base, mixed_folders, tmp_path, capsys):
    """In a run, in its continuation, and by way of a cache."""
    config = replace(base, stage=1, data=str(mixed_folders), cache=None, out=str(tmp_path / "run"), steps=1)
    train(config)
    said = capsys.readouterr().err
    assert said.count("left out: sample 0000001/0") == 1 and said.count("sample 0000002/0: source is") == 1
    assert "1 samples could not be read and were left out" in said
    first = json.loads((tmp_path / "run" / "training.json").read_text())
    assert f"{first['resized']} of 4 samples were pairs of two sizes" in said and 1 <= first["resized"] <= 2
    assert len(first["broken"]) == 1 and "0000001/0" in first["broken"][0]
    train(replace(config, steps=2), resume="latest")
    said = capsys.readouterr().err
    resumed = json.loads((tmp_path / "run" / "training.json").read_text())
    assert "left out" not in said.replace("were left out", "") and "source is" not in said
    assert resumed["resized"] > first["resized"] and resumed["broken"] == first["broken"]
    train(replace(config, cache=str(tmp_path / "cache"), out=str(tmp_path / "cached"), steps=3))
    said = capsys.readouterr().err
    assert said.count("left out: sample 0000001/0") == 1 and "1 of 3 samples were pairs of two sizes" in said
    assert json.loads((tmp_path / "cached" / "training.json").read_text())["resized"] == 4  # of 12, each 4 times


def test_only_when_all_samples_are_broken_training_stops(base, mixed_folders, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(mixed_folders, data)
    config = replace(base, stage=1, data=str(data), cache=None, out=str(tmp_path / "o"), steps=1)
    with pytest.raises(MRCError, match="--broken-limit 0"):
        train(replace(config, broken_limit=0))
    for folder in data.iterdir():
        (folder / "0_0.jpg").write_bytes(b"")
    with pytest.raises(MRCError, match="none of 4 samples can be read; the last says: sample"):
        train(config)
