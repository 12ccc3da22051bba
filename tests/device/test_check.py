"""The device check's dry run: its stages on a CPU with a tiny model, the package not installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("check.py")
STAGES = [
    "env",
    "build",
    "checkpoint",
    "truth",
    "torch_bfloat16",
    "torch_compiled",
    "eager",
    "compile",
    "torch_float32",
    "correct",
    "touch",
    "compile_kernels",
]
pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    """`check.py` with arguments → what it printed, exit status and results."""

    def call(*arguments: str) -> tuple[str, int, dict]:
        # -S: no editable install, so that the script must find the package by its own means
        packages = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
        settings = {"MRC_DRY": "1", "MRC_WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out")}
        done = subprocess.run(
            [sys.executable, "-S", SCRIPT, *arguments],
            env=os.environ | settings | {"PYTHONPATH": packages},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return done.stdout, done.returncode, json.loads((tmp_path / "out" / "results.json").read_text())

    return call


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no CMake")
def test_every_stage_reports(run, tmp_path):
    text, status, results = run("--budget", "3600")
    assert {name: result["state"] for name, result in results.items()} == dict.fromkeys(STAGES, "ok"), text
    assert status == 0
    assert results["env"]["torch"] and results["build"]["native_s"] > 0 and results["checkpoint"]["GB"] > 0
    assert results["truth"]["GPU against CPU, float32, 2 steps"] == 0
    errors = {name: row["error"] for name, row in results["touch"].items() if name.startswith("torch.")}
    assert len(errors) == 18 and max(errors.values()) < 1e-2
    assert results["correct"]["recorded against plain, turbo (7.5, 1.5)"] == 0
    rows = {name: row for result in results.values() for name, row in result.items() if name.endswith(" 64")}
    del rows["eager float32 64"]  # what the others are compared with
    limits = {"float32": 1e-4, "bfloat16": 0.1}
    for name, row in rows.items():
        limit = next(limit for precision, limit in limits.items() if precision in name)
        assert row["edit_s"] > 0 and row["latents_error"] < limit, name
    assert len(rows) == 5 and all(name in (tmp_path / "out" / "report.txt").read_text() for name in rows)


def test_a_failure_is_reported_and_stops_no_other(run):
    text, status, results = run("--only", "torch_float32,env", "--budget", "3600")  # without a checkpoint
    assert status == 1
    assert results["env"]["state"] == "ok" and results["torch_float32"]["state"] == "failed"
    assert "is neither a checkpoint" in results["torch_float32"]["failures"][0]
    assert "torch_float32: failed" in text and "stages: env ok, torch_float32 failed" in text
