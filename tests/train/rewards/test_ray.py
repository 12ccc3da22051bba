"""The Ray job, on a local cluster of two nodes with a worker each."""

import itertools
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.judge.spending import Spending
from mrc_edit.train.rewards.build import build
from mrc_edit.train.rewards.cluster import judge_on_ray

ray = pytest.importorskip("ray", reason="--ray is tested where ray is installed")


def test_a_cluster_that_does_not_answer_is_one_error(config, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray, "init", lambda *_, **__: {}["head"])
    with pytest.raises(MRCError, match=r"Ray does not start.*RAY_ADDRESS"):
        judge_on_ray(config(tmp_path, workers=1), 2, Spending())


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(
    ray_cluster, command, environment, triplets_of, judge_server, config, tmp_path
):
    data = triplets_of(24, "folders")
    alone = config(data, "mixed", out="alone")
    report = build(alone, Spending())
    assert 0 < report["complete"] < 24
    judge_server.log.clear()
    judge_server.service = 0.05
    together = config(data, "mixed", out="together")
    parts = [os.path.relpath(path, tmp_path) for path in (data, together.out)]  # workers have another folder
    arguments = ["build", "--data", parts[0], "--out", parts[1], "--model", "mixed", "--base-url", judge_server.url]
    whole = [*command, *arguments, "--ray", "--workers", "2", "--concurrency", "2"]
    here = {"cwd": tmp_path, "env": environment | ray_cluster, "capture_output": True, "text": True}
    done = subprocess.run(whole, check=False, **here)
    assert done.returncode == 0, done.stderr
    for name in ("RewardEdit.json", "rewards.jsonl", "report.json", "triplets.parquet"):
        assert (Path(together.out) / name).read_bytes() == (Path(alone.out) / name).read_bytes()
    log = judge_server.log
    assert max(Counter(entry["digest"] for entry in log).values()) == 1
    # a worker has one thread here: two requests at a time are two workers
    times = sorted((entry["started"], entry["answered"]) for entry in log)
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(times))

    limited = [*command, *arguments, "--ray", "--max-requests", "1"]
    done = subprocess.run(limited, check=False, **here)
    assert done.returncode == 2 and "--max-requests is 1, and 2 --workers" in done.stderr
