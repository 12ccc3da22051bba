"""A batch as a Ray Data job, on a local cluster of two nodes: what it writes is what a run without Ray writes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mrc_edit.engine.batch.cluster import Worker
from mrc_edit.engine.batch.command import arguments
from mrc_edit.engine.batch.inputs import open_items
from mrc_edit.engine.batch.place import open_place, read_ledgers

ray = pytest.importorskip("ray", reason="--ray is tested where ray is installed")
FLAGS = ["--seed", "3", "--steps", "1", "--resolution", "64", "--threads", "1"]


@pytest.fixture
def run(ray_cluster, tmp_path):
    """`run(*words)`: the command in a folder of its own; `kill` seconds after which it is killed."""

    def call(*words, kill=None):
        command = [sys.executable, "-m", "mrc_edit.engine.command", "mini", "--batch", *words, *FLAGS]
        here = {"cwd": tmp_path, "env": os.environ | ray_cluster}
        process = subprocess.Popen(command, **here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if kill is not None:
            kill()
            process.send_signal(signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=300)
        return process.returncode, stdout, stderr

    return call


def until(true, seconds=240):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_a_worker_that_died_had_done_is_not_done_again(batch, folder, calls, tmp_path, monkeypatch):
    """Ray gives its pass to another worker, which finds the edits."""
    monkeypatch.chdir(tmp_path)
    folder(3)
    assert batch("in", "out", "--seed", 3)[0] == 0
    items = open_items("in", 1)
    args = arguments().parse_args(["m", "--batch", "in", "out", "--seed", "3"])
    worker = Worker(args, open_place("out", items, "png"), tmp_path)
    (tmp_path / "out" / "2.png").unlink()
    rows = worker({"items": [items[:2]]})["entries"]
    assert [entry["key"] for row in rows for entry in json.loads(row)] == ["0", "1"] and len(calls()) == 3
    rows = worker({"items": [items[2:]]})["entries"]
    assert [entry["key"] for row in rows for entry in json.loads(row)] == ["2"] and len(calls()) == 4
    os.close(worker.lock)


def test_a_cluster_that_does_not_answer_is_one_line(batch, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray, "init", lambda *_, **__: {}["head"])
    status, _, stderr = batch(folder(2), tmp_path / "out", "--ray")
    assert status == 2 and stderr.count("\n") == 1 and "RAY_ADDRESS" in stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "shards"])
def test_with_ray_and_without_the_same_is_written(run, folder, shards, edits_of, tmp_path, form):
    """Names relative to the folder of the command, which workers do not start in; passes of two, the last of one."""
    if form == "folder":
        folder(7)
        words, outs = ["in"], ["plain", "together"]
    else:
        shards(2, 3)
        words, outs = ["in-{0..1}.tar"], ["plain/e-{0..1}.tar", "together/e-{0..1}.tar"]
    size = ["--batch-size", "2"]
    assert run(*words, outs[0], *size)[0] == 0
    status, stdout, stderr = run(*words, outs[1], *size, "--ray", "--workers", "2", "--json")
    assert status == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["failed"] == 0
    assert edits_of(tmp_path / "together") == edits_of(tmp_path / "plain")
    ledgers = list((tmp_path / "together" / ".mrc-batch").glob("done-*.jsonl"))
    assert len(ledgers) >= 2
    again = run(*words, outs[1], *size)  # either goes on where the other has ended
    assert again[0] == 0 and "edited: 0" in again[1]


@pytest.mark.slow
def test_a_killed_job_is_resumed(run, folder, edits_of, tmp_path):
    (folder(24) / "5.png").write_bytes(b"broken")
    out = tmp_path / "out"
    status = run("in", "out", "--ray", "--workers", "2", kill=lambda: until(lambda: len(edits_of(out)) > 3))[0]
    assert status == -signal.SIGKILL and 3 < len(edits_of(out)) < 24
    status, stdout, stderr = run("in", "out", "--ray", "--workers", "2")
    assert status == 1 and "failed: 1" in stdout, stderr
    keys = [entry["key"] for entry in read_ledgers(out / ".mrc-batch") if "error" not in entry]
    assert len(keys) == len(set(keys)) == 23
    assert run("in", "plain")[0] == 1
    assert edits_of(out) == edits_of(tmp_path / "plain")
    status, _, stderr = run("in", "out", "--ray", "--tier", "fast")
    assert status == 2 and "was begun with tier" in stderr
