"""Training runs of a few steps on a seeded checkpoint and eight miniature triplets."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mrc_edit.train import grid
from mrc_edit.train.config import TrainConfig
from mrc_edit.train.loop import train
from mrc_edit.train.state import list_states


@pytest.fixture(scope="session")
def base(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return TrainConfig(
        init=str(plain), data="miniature:8", out=str(folder / "out"), cache=str(folder / "cache"), resolution=64,
        batch_size=4, steps=4, checkpoint_every=2, learning_rate=1e-3, workers=0, tracker="", warmup=2,
        validate_every=0, augment=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(base):
    """A finished run of stage 2."""
    train(base)
    return Path(base.out)


@pytest.fixture(scope="session")
def stage1(base, tmp_path_factory):
    """A finished run of stage 1."""
    out = tmp_path_factory.mktemp("runs") / "stage1"
    train(replace(base, stage=1, out=str(out)))
    return out


@pytest.fixture
def brief_grids(monkeypatch):
    """Two denoising steps an edit of the validation grids."""
    monkeypatch.setattr(grid, "STEPS", 2)


@pytest.fixture(scope="session")
def launch() -> str:
    """Source of a process that trains; its arguments are the settings as JSON and, perhaps, what to resume."""
    return """
import json, sys
from mrc_edit.train import grid
from mrc_edit.train.config import TrainConfig
from mrc_edit.train.loop import train
grid.STEPS = 2
train(TrainConfig(**json.loads(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else None)
"""


@pytest.fixture(scope="session")
def train_by_two(launch, tmp_path_factory):
    """`train_by_two(config, resume)`: `train` in two processes."""
    script = tmp_path_factory.mktemp("launch") / "launch.py"
    script.write_text(launch)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def run(config, *resume):
        given = [json.dumps(config.record()), *resume]
        done = subprocess.run([*command, *given], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture(scope="session")
def losses_of():
    """Losses of all steps of the run in a folder."""
    return lambda out: [row[1] for row in json.loads((list_states(out)[-1] / "state.json").read_text())["curve"]]


@pytest.fixture(scope="session")
def tensors_of():
    """Tensors of a state."""
    return lambda folder: safetensors.torch.load_file(folder / "state.safetensors")


@pytest.fixture(scope="session")
def same_state(tensors_of):
    """Whether two states have the same tensors, bit for bit."""

    def same(first, second):
        one, two = tensors_of(first), tensors_of(second)
        return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)

    return same
