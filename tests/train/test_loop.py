"""Training runs of a few steps on a seeded checkpoint and eight miniature triplets."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint
from mrc_edit.model.rewards import REWARD_KEYS
from mrc_edit.model.widen import add_rewards
from mrc_edit.train import grid
from mrc_edit.train.config import TrainConfig
from mrc_edit.train.loop import train
from mrc_edit.train.setup import starting_point
from mrc_edit.train.state import list_states

LAUNCH = """
import json, sys
from mrc_edit.train import grid
from mrc_edit.train.config import TrainConfig
from mrc_edit.train.loop import train
grid.STEPS = 2
train(TrainConfig(**json.loads(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else None)
"""


@pytest.fixture(scope="module")
def base(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return TrainConfig(
        init=str(plain), data="miniature:8", out=str(folder / "out"), cache=str(folder / "cache"), resolution=64,
        batch_size=4, steps=4, checkpoint_every=2, learning_rate=1e-3, workers=0, tracker="", warmup=2,
        validate_every=0, augment=False,
    )  # fmt: skip


def losses_of(out):
    return [row[1] for row in json.loads((list_states(out)[-1] / "state.json").read_text())["curve"]]


def tensors_of(folder):
    return safetensors.torch.load_file(folder / "state.safetensors")


def same_state(a, b):
    one, two = tensors_of(a), tensors_of(b)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def undisturbed(base):
    """A finished run of stage 2."""
    train(base)
    return base.out


@pytest.fixture(scope="module")
def stage1(base, tmp_path_factory):
    """A finished run of stage 1."""
    out = tmp_path_factory.mktemp("runs") / "stage1"
    train(replace(base, stage=1, out=str(out)))
    return out


@pytest.fixture
def brief_grids(monkeypatch):
    """Two denoising steps an edit of the validation grids."""
    monkeypatch.setattr(grid, "STEPS", 2)


def test_both_stages_write_checkpoints_that_load(base, undisturbed, stage1):
    stage2 = load_checkpoint(Path(undisturbed) / "checkpoint")
    assert stage2.unet.rewards
    start = starting_point(base)
    for part, moves in (("unet", True), ("vae", False), ("text_encoder", False)):
        before = getattr(start, part).state_dict()
        for key, value in getattr(stage2, part).state_dict().items():
            assert torch.equal(value, before[key]) != moves, f"{part}.{key}"
    record = json.loads((Path(undisturbed) / "training.json").read_text())
    assert record["config"]["seed"] == 0 and record["versions"]["torch"] == torch.__version__
    assert not load_checkpoint(stage1 / "checkpoint").unet.rewards


def test_a_stage_two_checkpoint_serves_diffusers_without_its_rewards(undisturbed):
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        undisturbed + "/checkpoint", safety_checker=None, feature_extractor=None
    )
    ours = load_checkpoint(undisturbed + "/checkpoint").unet.state_dict()
    theirs = pipeline.unet.state_dict()
    assert theirs.keys() == {key for key in ours if not key.startswith(REWARD_KEYS)}
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    edited = pipeline("snow", image=torch.zeros(1, 3, 64, 64), num_inference_steps=1, output_type="np").images
    assert edited.shape == (1, 64, 64, 3) and np.isfinite(edited).all()


def test_all_reward_tensors_receive_gradients(plain):
    unet = add_rewards(load_checkpoint(plain).unet).train().requires_grad_(True)
    for parameter in unet.parameters():  # away from the zeros that training starts at
        torch.nn.init.normal_(parameter, std=0.05)
    noise = unet(torch.randn(2, 8, 8, 8), torch.tensor([3, 900]), torch.randn(2, 77, 64), torch.rand(2, 3) * 5,
                 torch.randn(2, 64))  # fmt: skip
    noise.square().mean().backward()
    rewards = {key: p.grad for key, p in unet.named_parameters() if key.startswith(REWARD_KEYS)}
    assert len(rewards) == 34
    assert [key for key, grad in rewards.items() if grad is None or not grad.abs().sum()] == []


def test_resuming_goes_on_bit_for_bit(base, undisturbed, tmp_path):
    config = replace(base, steps=2, out=str(tmp_path / "half"))
    train(config)
    train(replace(config, steps=4), resume="latest")
    whole, halves = list_states(Path(undisturbed))[-1], list_states(tmp_path / "half")[-1]
    assert whole.name == halves.name == "00000004" and same_state(whole, halves)


def test_killed_at_any_moment_it_resumes_from_the_last_whole_state(base, undisturbed, tmp_path):
    out = tmp_path / "killed"
    config = replace(base, checkpoint_every=1, out=str(out))
    for delay in (0.0, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, json.dumps(config.record()), *(["latest"] if out.exists() else [])],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        before = len(list_states(out))
        while process.poll() is None and len(list_states(out)) == before and not list(out.glob("states/.*partial*")):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it had ended before the kill"
    train(config, resume="latest")
    assert same_state(list_states(out)[-1], list_states(Path(undisturbed))[-1])


@pytest.fixture(scope="module")
def one_process(base, tmp_path_factory):
    """A longer run of stage 1 by one process."""
    config = replace(base, stage=1, steps=20, checkpoint_every=20, out=str(tmp_path_factory.mktemp("runs") / "one"))
    train(config)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_train_as_one_with_twice_the_batch(base, one_process, shard, tmp_path):
    alone = load_checkpoint(Path(one_process.out) / "checkpoint").unet.state_dict()
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    two = replace(one_process, shard=shard, validate_every=7, cache=str(tmp_path / "cache"), out=str(tmp_path / "two"))
    for steps, resume in ((8, []), (20, ["latest"])):
        given = json.dumps(replace(two, steps=steps).record())
        run = subprocess.run([*command, str(script), given, *resume], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
    losses = np.array([losses_of(Path(out)) for out in (one_process.out, two.out)])
    assert losses.shape == (2, 20)
    assert np.abs(losses[0] - losses[1]).max() <= 1e-4 * losses[0].max()
    together = load_checkpoint(tmp_path / "two" / "checkpoint").unet.state_dict()
    start = load_checkpoint(base.init).unet.state_dict()
    apart, moved = (
        sum((other[key] - value).square().sum() for key, value in alone.items()) ** 0.5 for other in (together, start)
    )
    assert apart <= 0.05 * moved


def test_accumulated_passes_are_one_step(base, stage1, tmp_path):
    train(replace(base, stage=1, steps=3, accumulation=2, out=str(tmp_path / "o")))
    assert np.allclose(losses_of(tmp_path / "o"), losses_of(stage1)[:3], rtol=1e-4)


def test_states_are_limited(base, tmp_path):
    config = replace(base, stage=1, checkpoint_every=1, checkpoints_total_limit=2, out=str(tmp_path / "o"))
    train(config)
    assert [path.name for path in list_states(tmp_path / "o")] == ["00000003", "00000004"]
    with pytest.raises(MRCError, match="--resume latest"):
        train(config)
    with pytest.raises(MRCError, match=r"no state of step '7' \(it has: 3, 4\)"):
        train(config, resume="7")
    with pytest.raises(MRCError, match="weight_decay"):
        train(replace(config, weight_decay=1.0), resume="latest")


def test_pixels_and_texts_train_as_their_cached_latents_and_states(base, undisturbed, tmp_path):
    train(replace(base, steps=2, cache=None, out=str(tmp_path / "pixels")))
    assert np.allclose(losses_of(tmp_path / "pixels"), losses_of(Path(undisturbed))[:2], rtol=2e-3)  # a float16 cache
    for change in ({"resolution": 32}, {"seed": 5}):
        with pytest.raises(MRCError, match="was made from"):
            train(replace(base, out=str(tmp_path / "other"), **change))
    (tmp_path / "things").mkdir()
    with pytest.raises(MRCError, match="no cache"):
        train(replace(base, cache=str(tmp_path / "things"), out=str(tmp_path / "other")))


def test_lora_trains_low_rank_updates_and_merges_them(base, tmp_path):
    trained = load_checkpoint(train(replace(base, lora_rank=2, out=str(tmp_path / "lora")))).unet.state_dict()
    start = load_checkpoint(base.init).unet.state_dict()
    ranks = {}
    fresh = starting_point(base).unet.state_dict()
    for key in fresh.keys() - start.keys():  # the reward modules train in full
        assert not torch.equal(trained[key], fresh[key]), key
    for key, value in start.items():
        difference = trained[key] - value
        if ".to_q.weight" in key:
            ranks[key] = torch.linalg.matrix_rank(difference, rtol=1e-3).item()
        elif ".to_" not in key:
            assert not difference.any(), key
    assert ranks and set(ranks.values()) <= {1, 2}


def test_gradients_are_clipped_to_their_norm(base, tmp_path):
    """Adam does not see the scale of a gradient but its step after a much larger one does."""
    moved = {}
    for norm in (1e9, 1e-9):
        config = replace(base, stage=1, steps=1, warmup=0, max_grad_norm=norm, out=str(tmp_path / str(norm)))
        train(config)
        moments = {k: v for k, v in tensors_of(list_states(Path(config.out))[-1]).items() if k.endswith("exp_avg")}
        moved[norm] = sum(v.square().sum() for v in moments.values()) ** 0.5
    assert moved[1e-9] == pytest.approx(0.1 * 1e-9, rel=1e-2)  # exp_avg is a tenth of the first gradient
    assert moved[1e9] > 1e3 * moved[1e-9]


def test_timesteps_are_drawn_by_their_power(base, stage1, tmp_path):
    train(replace(base, stage=1, steps=1, timestep_power=3.0, out=str(tmp_path / "noisy")))
    assert losses_of(tmp_path / "noisy")[0] != losses_of(stage1)[0]


def test_checkpointed_gradients_are_the_same(base, undisturbed, tmp_path):
    train(replace(base, gradient_checkpointing=True, steps=3, out=str(tmp_path / "o")))
    assert np.allclose(losses_of(tmp_path / "o"), losses_of(Path(undisturbed))[:3], rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_ids(base, tmp_path):
    with pytest.raises(MRCError, match="not_finite"):
        train(replace(base, stage=1, learning_rate=1e30, warmup=0, max_grad_norm=1e30, out=str(tmp_path / "nan")))
    saved = json.loads((tmp_path / "nan" / "not_finite.json").read_text())
    assert len(saved["ids"]) == 4 and saved["ids"][0].startswith("miniature-0-") and "nan" in saved["what"]
    assert not (tmp_path / "nan" / "states").exists()


def test_a_full_disk_leaves_the_old_state(base, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    config = replace(base, stage=1, steps=2, out=str(tmp_path / "full"))
    train(config)
    old = tensors_of(list_states(tmp_path / "full")[-1])

    def full(tensors, path, metadata):
        path.write_bytes(b"half a state")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(MRCError, match="No space"):
        train(replace(config, steps=4), resume="latest")
    states = list_states(tmp_path / "full")
    assert [path.name for path in states] == ["00000002"]
    assert all(torch.equal(value, old[key]) for key, value in tensors_of(states[-1]).items())
    assert not list((tmp_path / "full" / "states").glob(".*"))


def test_what_cannot_be_trained(base, undisturbed, tmp_path):
    out = str(tmp_path / "x")
    for change, message in (
        ({"batch_size": 3, "accumulation": 2}, "multiple of 2"),
        ({"data": "miniature:many", "cache": None}, "miniature:N"),
        ({"data": str(tmp_path), "cache": None}, "looked for"),
        ({"init": undisturbed + "/checkpoint", "stage": 1}, "stage 1 trains without"),
        ({"shard": True}, "more than one process"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"tracker": "nonsense"}, "accelerate cannot"),
    ):
        with pytest.raises(MRCError, match=message):
            train(replace(base, out=out, **change))


def test_rewards_after_every_block_train_and_load(base, undisturbed, tmp_path):
    for name, init in (("from stage one", base.init), ("from rewards", undisturbed + "/checkpoint")):
        config = replace(base, init=init, reward_injection="blocks", steps=2, out=str(tmp_path / name))
        config = replace(config, cache=str(tmp_path / "cache"))
        assert load_checkpoint(train(config)).unet.reward_injection == "blocks"


def test_a_run_leaves_pictures_a_report_and_a_tracker(base, brief_grids, tmp_path):
    out = tmp_path / "shown"
    train(replace(base, stage=1, steps=2, validate_every=1, tracker="tensorboard", out=str(out)))
    grids = sorted(path.name for path in (out / "validation").iterdir())
    assert grids == ["00000001.png", "00000002.png"]
    with Image.open(out / "validation" / grids[0]) as picture:
        assert picture.size == (3 * 64, 6 * (64 + 14)) and picture.getcolors(100) is None
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 3 and "learning_rate" in page and "http" not in page
    assert list(out.rglob("events.out.tfevents*"))


def test_validation_does_not_change_the_training(base, undisturbed, brief_grids, tmp_path):
    train(replace(base, validate_every=1, out=str(tmp_path / "v")))
    assert same_state(list_states(tmp_path / "v")[-1], list_states(Path(undisturbed))[-1])
