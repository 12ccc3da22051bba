import json

import pytest
import torch
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint
from mrc_edit.train import autoencoder, command, config, state
from mrc_edit.train.miniature import recipe


@pytest.fixture
def brief(monkeypatch):
    """The recipe with a step or two of everything."""
    settings = {"data": "miniature:8", "batch_size": 4, "steps": 1, "workers": 0, "validate_every": 0, "tracker": ""}
    monkeypatch.setitem(config.PRESETS, "mini", config.PRESETS["mini"] | settings)
    for _, own in recipe.STAGES.values():
        monkeypatch.setitem(own, "steps", 1)
    monkeypatch.setattr(autoencoder, "STEPS", 2)
    monkeypatch.setattr(autoencoder, "BATCH", 4)
    monkeypatch.setattr(autoencoder, "HELD_OUT", 4)


def test_the_recipe_makes_every_part_once(brief, tmp_path):
    checkpoint = recipe.reproduce(tmp_path, None, seed=3)
    loaded = load_checkpoint(checkpoint)
    assert loaded.unet.rewards and loaded.vae.config.latent_channels == loaded.unet.config.out_channels
    assert not load_checkpoint(tmp_path / "baseline" / "checkpoint").unet.rewards
    assert set(json.loads((tmp_path / "training.json").read_text())) == {"autoencoder", "stage1", "stage2", "baseline"}
    written = (tmp_path / "stage2" / "training.json").stat().st_mtime_ns
    recipe.reproduce(tmp_path, None, seed=3)
    assert (tmp_path / "stage2" / "training.json").stat().st_mtime_ns == written


class Stopped(Exception):
    """In place of a kill: no code of ours catches it."""


def test_stopped_in_every_part_it_goes_on_as_if_it_had_not(brief, tmp_path, monkeypatch):
    monkeypatch.setitem(config.PRESETS["mini"], "checkpoint_every", 1)
    monkeypatch.setattr(autoencoder, "SAVE_EVERY", 1)
    for _, own in recipe.STAGES.values():
        monkeypatch.setitem(own, "steps", 2)
    whole = recipe.reproduce(tmp_path / "whole", None, seed=3)
    stops = []

    def write_and_stop(out, record, training, tensors, limit):
        state_write(out, record, training, tensors, limit)
        if training.step == 1:
            stops.append(out.name)
            raise Stopped

    state_write = state.write_state
    monkeypatch.setattr(state, "write_state", write_and_stop)
    monkeypatch.setattr(autoencoder, "write_state", write_and_stop)
    for _ in range(4):
        with pytest.raises(Stopped):
            recipe.reproduce(tmp_path / "stopped", None, seed=3)
    checkpoint = recipe.reproduce(tmp_path / "stopped", None, seed=3)
    assert stops == ["autoencoder", "stage1", "stage2", "baseline"]
    for name in ("unet", "vae", "text_encoder"):
        expected, found = (getattr(load_checkpoint(path), name).state_dict() for path in (whole, checkpoint))
        assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


def test_the_command_refuses_what_the_recipe_sets(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--preset", "mini", "--out", str(tmp_path), "--steps", "5"])
    assert stop.value.code == 2 and "sets steps itself" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        command.main(["--data", "miniature:4", "--out", str(tmp_path)])
    assert stop.value.code == 2 and "checkpoint folder to start from" in capsys.readouterr().err


def test_several_processes_do_not_make_mini_together(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MRCError, match="one process"):
        recipe.reproduce(tmp_path, None, seed=0)
    assert not list(tmp_path.iterdir())


def test_photographs_that_are_none(brief, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "small.gif")
    with pytest.raises(MRCError, match="holds no"):
        recipe.reproduce(tmp_path / "out", str(tmp_path), seed=0)
