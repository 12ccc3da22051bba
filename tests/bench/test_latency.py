import json

import numpy as np
import pytest

from mrc_edit.bench import latency
from mrc_edit.core.errors import MRCError


def arguments(*given):
    return latency.arguments().parse_args([str(part) for part in given])


def test_a_report_tells_speed_and_fidelity(tiny, tiny_export, tmp_path, capsys):
    report, picture = tmp_path / "latency.json", tmp_path / "latency.png"
    options = ("--size", 64, "--steps", 2, "--rounds", 3, "--json", report, "--plot", picture)
    latency.run(arguments(tiny, "--export", tiny_export, *options))
    read = json.loads(report.read_text())
    assert read["settings"] == {"size": 64, "steps": 2, "rounds": 3}
    eager, onnx = read["variants"]["eager"], read["variants"]["onnxruntime"]
    assert eager["latents_relative_error"] == 0
    assert eager["edit_speedup"] == {"median": 1, "least": 1, "greatest": 1}
    assert 0 < onnx["latents_relative_error"] <= 1e-4
    assert onnx["psnr_db"] > 60
    for entry in (eager, onnx):
        assert len(entry["rounds"]) == 3
        assert set(entry["seconds"]) == {"text", "encode", "condition", "step", "decode", "edit", "parts"}
        assert 0 < entry["load_s"] < entry["first_edit_s"]
        assert entry["peak_bytes"] > 20e6
        assert 0.5 < entry["edit_over_parts"] < 2
        assert 0 < entry["peak_private_bytes"] <= entry["peak_bytes"]
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
        (("--variants", "eager,magic"), "unknown"),
        (("--variants", "onnxruntime"), "eager"),
        (("--rounds", 0), "at least"),
        (("--size", 8), "at least"),
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
    assert 0 < read["plain-onnxruntime"]["latents_relative_error"] <= 1e-4


def test_an_error_in_a_variants_process_is_told(tiny, tiny_export):
    options = ("--export", tiny_export, "--variants", "eager,onnxruntime:int8", "--size", 64)
    with pytest.raises(MRCError, match="--int8"):
        latency.run(arguments(tiny, *options))
