import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrc_edit.bench import latency, machine
from mrc_edit.core.errors import MRCError
from mrc_edit.engine.shipped import MODELS

BENCH = Path(latency.__file__).parent


def arguments(*given):
    return latency.arguments().parse_args([str(part) for part in given])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_report_tells_speed_and_fidelity(tiny, tiny_export, tmp_path, capsys):
    files = {kind: tmp_path / f"latency.{kind}" for kind in ("json", "csv", "png")}
    options = ("--size", 64, "--steps", 2, "--rounds", 3, "--warmup", 2)
    outputs = ("--json", files["json"], "--csv", files["csv"], "--plot", files["png"])
    latency.run(arguments(tiny, "--export", tiny_export, *options, *outputs))
    read = json.loads(files["json"].read_text())
    assert read["settings"] == {
        "size": 64, "steps": 2, "batch": 1, "scheduler": "euler_ancestral", "guidance": 7.5, "image_guidance": 1.5,
        "threads": None, "device": "", "provider": "", "warmup": 2, "rounds": 3,
    }  # fmt: skip
    eager, onnx = read["variants"]["eager"], read["variants"]["onnxruntime"]
    assert read["baseline"] == "eager"
    assert eager["latents_relative_error"] == 0
    assert eager["edit_speedup"] == {"median": 1, "least": 1, "greatest": 1}
    assert 0 < onnx["latents_relative_error"] <= 1e-4
    assert onnx["psnr_db"] > 60
    for entry in (eager, onnx):
        assert len(entry["rounds"]) == 3
        assert all(len(one["steps"]) == 2 for one in entry["rounds"])
        assert set(entry["seconds"]) == {"text", "encode", "condition", "step", "decode", "edit", "parts"}
        assert entry["percentiles"]["edit"]["p50"] == pytest.approx(entry["seconds"]["edit"])
        assert 0 < entry["load_s"] < entry["first_edit_s"]
        assert entry["peak_bytes"] > 20e6
        assert 0 < entry["peak_private_bytes"] <= entry["peak_bytes"]
        assert entry["precision"] == "float32" and entry["product_share"] > 0 and entry["copy_share"] > 0
    assert onnx["peak_bytes"] < eager["peak_bytes"]  # no PyTorch in its process
    assert set(read["limits"]) == {"float32", "bfloat16", "copy"}
    assert files["png"].read_bytes().startswith(b"\x89PNG")

    table = list(csv.DictReader(files["csv"].open()))
    markdown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "against eager" in markdown[0] and "error relative to eager" in markdown[0]
    for row, shown, flat in zip(table, markdown[2:], read["rows"], strict=True):
        entry = read["variants"][row["variant"]]
        assert row == {key: "" if value is None else str(value) for key, value in flat.items()}
        assert float(row["step_ms"]) == 1e3 * entry["seconds"]["step"]
        cells = [cell.strip() for cell in shown.strip("|").split("|")]
        assert cells[:2] == [row["variant"], f"{float(row['step_ms']):.0f} ms"]
        assert cells[-1] == (f"{float(row['psnr_db']):.1f} dB" if row["psnr_db"] else "equal")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--variants", "eager,magic"), "magic.* is unknown"),
        (("--variants", "eager:float32:exact:more"), "is unknown"),
        (("--variants", "eager,eager"), "each variant once"),
        (("--rounds", 0), "--rounds"),
        (("--warmup", 0), "--warmup"),
        (("--size", 8), "--size"),
        (("--threads", 10_000, "--variants", "eager"), "--threads"),
        (("--provider", "CPUExecutionProvider", "--variants", "eager"), "--provider"),
        (("--device", "cpu", "--variants", "onnxruntime"), "PyTorch computes no variant"),
        (("--check", "missing.json"), "--check"),
    ],
)
def test_bad_options(tiny, options, word):
    with pytest.raises(MRCError, match=word):
        latency.run(arguments(tiny, *options))


def test_peers_compute_what_eager_computes(tiny, tmp_path):
    report = tmp_path / "peers.json"
    names = "eager,eager:bfloat16,plain-onnxruntime"
    latency.run(arguments(tiny, "--variants", names, "--size", 64, "--steps", 2, "--rounds", 1, "--json", report))
    read = json.loads(report.read_text())["variants"]
    assert 1e-4 < read["eager:bfloat16"]["latents_relative_error"] < 0.1
    assert read["eager:bfloat16"]["precision"] == "bfloat16"
    assert 0 < read["plain-onnxruntime"]["latents_relative_error"] <= 1e-4


def test_an_error_in_a_variants_process_is_told(tiny, tiny_export):
    options = ("--export", tiny_export, "--variants", "onnxruntime:int8", "--size", 64)
    with pytest.raises(MRCError, match="--int8"):
        latency.run(arguments(tiny, *options))


def script(*options, **environment):
    """`python bench/latency.py` with PyTorch blocked, in this process and those that it starts."""
    command = [sys.executable, str(BENCH / "latency.py"), *map(str, options)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment, cwd=BENCH.parent
    )


@pytest.fixture
def without_torch(tmp_path) -> dict[str, str]:
    """Environment of a Python in which `import torch` fails."""
    for name in ("torch", "diffusers", "transformers", "matplotlib"):
        (tmp_path / "blocked" / name).mkdir(parents=True)
        (tmp_path / "blocked" / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked')\n")
    return {"PYTHONPATH": str(tmp_path / "blocked")}


def test_an_export_is_timed_without_pytorch_and_checked(without_torch, tmp_path):
    """The script form, an export as baseline, options of the machine, and `--check` in both directions."""
    report = tmp_path / "report.json"
    options = (
        MODELS["mini"] / "onnx", "--size", 64, "--steps", 1, "--rounds", 2, "--batch", 2, "--guidance", 3,
        "--image-guidance", 1, "--threads", 1, "--provider", "CPUExecutionProvider",
    )  # fmt: skip
    done = script(*options, "--json", report, **without_torch)
    assert done.returncode == 0, done.stderr
    assert "error relative to onnxruntime" in done.stdout and "counted on a checkpoint" in done.stdout
    read = json.loads(report.read_text())
    assert list(read["variants"]) == ["onnxruntime"] and read["machine"]["threads"] == 1
    assert (read["settings"]["batch"], read["settings"]["guidance"]) == (2, 3)
    assert read["variants"]["onnxruntime"]["product_share"] is None and set(read["limits"]) == {"float32", "copy"}

    faster, slower = tmp_path / "faster.json", tmp_path / "slower.json"
    for path, factor in ((faster, 1e-3), (slower, 1e3)):
        seconds = {key: factor * value for key, value in read["variants"]["onnxruntime"]["seconds"].items()}
        path.write_text(json.dumps(read | {"variants": {"onnxruntime": {"seconds": seconds}}}))
    done = script(*options, "--check", slower, "--tolerance", 1.1, **without_torch)
    assert done.returncode == 0, done.stderr
    done = script(*options, "--check", faster, "--tolerance", 1.1, **without_torch)
    assert done.returncode == 1 and "slower than --tolerance 1.1 allows: onnxruntime step" in done.stderr


def test_the_machine_is_recorded(monkeypatch):
    """All that a reader needs to repeat a run."""
    assert {"cpu", "cores", "threads", "packages", "date", "command"} <= machine.describe_machine().keys()
