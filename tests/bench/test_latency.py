import json

import numpy as np
import pytest

from mrc.bench import latency
from mrc.errors import MRCError


def arguments(*given):
    return latency.arguments().parse_args([str(part) for part in given])


def test_a_report_tells_speed_and_fidelity(tiny, tiny_export, tmp_path, capsys):
    report, picture = tmp_path / "latency.json", tmp_path / "latency.png"
    options = ("--size", 64, "--steps", 2, "--rounds", 3, "--json", report, "--plot", picture)
    latency.run(arguments(tiny, "--export", tiny_export, *options))
    read = json.loads(report.read_text())
    assert read["settings"] == {"size": 64, "steps": 2, "rounds": 3}
    eager, onnx = read["backends"]["eager"], read["backends"]["onnxruntime"]
    assert eager["latents_relative_error"] == 0
    assert eager["edit_speedup"] == {"median": 1, "least": 1, "greatest": 1}
    assert 0 < onnx["latents_relative_error"] <= 1e-4
    assert onnx["psnr_db"] > 60
    for entry in (eager, onnx):
        assert len(entry["rounds"]) == 3
        assert set(entry["seconds"]) == {"text", "encode", "condition", "step", "decode", "edit"}
        assert 0 < entry["load_s"] < entry["first_edit_s"]
        assert entry["peak_bytes"] > 20e6
    assert onnx["peak_bytes"] < eager["peak_bytes"]  # no PyTorch in its process
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "onnxruntime" in capsys.readouterr().out


def test_psnr():
    zero = np.zeros((4, 4))
    assert latency.psnr(zero, zero) is None
    assert latency.psnr(zero + 0.1, zero) == pytest.approx(20)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--backends", "eager,magic"), "unknown"),
        (("--backends", "onnxruntime"), "eager"),
        (("--rounds", 0), "at least"),
        (("--size", 8), "at least"),
    ],
)
def test_bad_options(tiny, options, word):
    with pytest.raises(MRCError, match=word):
        latency.run(arguments(tiny, *options))
