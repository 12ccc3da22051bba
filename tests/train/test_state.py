"""Saved states: resuming, kills, a full disk."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.train.loop import train
from mrc_edit.train.state import FILES, check_state, list_states, remove_states


def test_resuming_goes_on_bit_for_bit(base, undisturbed, tmp_path, same_state):
    config = replace(base, steps=2, out=str(tmp_path / "half"))
    train(config)
    train(replace(config, steps=4), resume="latest")
    whole, halves = list_states(undisturbed)[-1], list_states(tmp_path / "half")[-1]
    assert whole.name == halves.name == "00000004" and same_state(whole, halves)


def test_killed_at_any_moment_it_resumes_from_the_last_whole_state(base, undisturbed, launch, tmp_path, same_state):
    out = tmp_path / "killed"
    config = replace(base, checkpoint_every=1, out=str(out))
    for delay in (0.0, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", launch, json.dumps(config.record()), *(["latest"] if out.exists() else [])],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        before = len(list_states(out))
        while process.poll() is None and len(list_states(out)) == before and not list(out.glob("states/.*partial*")):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it had ended before the kill"
    train(config, resume="latest")
    assert same_state(list_states(out)[-1], list_states(undisturbed)[-1])


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


def test_going_back_leaves_no_state_of_the_other_way(base, tmp_path):
    """`--resume latest` would take it up again."""
    config = replace(base, stage=1, steps=3, checkpoint_every=1, out=str(tmp_path))
    train(config)
    train(replace(config, steps=2, learning_rate=1e-4), resume="1")
    assert [path.name for path in list_states(tmp_path)] == ["00000001", "00000002"]


def test_a_setting_that_an_older_version_did_not_have_was_at_its_default(base, tmp_path):
    config = replace(base, stage=1, steps=1, checkpoint_every=1, out=str(tmp_path))
    train(config)
    path = list_states(tmp_path)[0] / "state.json"
    record = json.loads(path.read_text())
    del record["config"]["change_weight"]
    path.write_text(json.dumps(record))
    with pytest.raises(MRCError, match=r"change_weight 0.0 → 2.0"):
        train(replace(config, change_weight=2.0), resume="latest")
    train(replace(config, steps=2), resume="latest")


def test_a_full_disk_leaves_the_old_state(base, tmp_path, monkeypatch, tensors_of):
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


def test_what_is_not_a_state_stays(tmp_path):
    states = tmp_path / "states"
    for name in ("00000001", "00000002", "00000003", "2024-backup"):
        (states / name).mkdir(parents=True)
        for file in FILES:
            (states / name / file).write_text("{}")
    (states / "00000002" / "notes.txt").write_text("keep me")
    assert [path.name for path in list_states(tmp_path)] == ["00000001", "00000002", "00000003"]
    remove_states(list_states(tmp_path))
    assert sorted(path.name for path in states.iterdir()) == ["00000002", "2024-backup"]
    assert len(list((states / "00000002").iterdir())) == 3
    with pytest.raises(MRCError, match=r"notes\.txt, which is not of a state"):
        check_state(states / "00000002")
