import json

import pytest
import torch

from mrc_edit.bench import operators
from mrc_edit.kernels import ops


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(operators, "CHANNELS", 64)
    monkeypatch.setattr(operators, "LEVELS", ((64, 8),))
    case = operators.reward_case
    monkeypatch.setattr(operators, "reward_case", lambda side, *rest: case(side // 8, *rest))


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["operators", *arguments])
    with pytest.raises(SystemExit) as stop:
        operators.main()
    return stop.value.code


def test_timings_are_told_with_their_errors(small, monkeypatch, tmp_path, capsys):
    assert not run(monkeypatch, "--rounds", "2", "--json", str(tmp_path / "k.json"))
    report = json.loads((tmp_path / "k.json").read_text())["timings"]
    assert {name.split()[0] for name in report} == {"reward_block", "guided_step", "group_norm_silu"}
    for row in report.values():
        assert 0 < row["error"] <= 1e-5 and row["least"] <= row["speedup"] <= row["greatest"]
    assert "reward_block" in capsys.readouterr().out


def test_eager_and_ours_do_the_same(small):
    for case in operators.cases(torch.float32, "cpu"):
        if case.name.startswith(("reward", "group")):
            torch.testing.assert_close(case.ours(), case.eager(), rtol=1e-3, atol=1e-4)


def test_no_speed_of_a_wrong_kernel(small, monkeypatch, capsys):
    right = ops.group_norm_silu
    monkeypatch.setattr(ops, "group_norm_silu", lambda *args: right(*args) * 1.001)
    assert run(monkeypatch, "--rounds", "1") == 2
    assert "group_norm_silu" in capsys.readouterr().err


def test_launches_of_the_released_step():
    counts = operators.launches()
    assert counts["eager"] > counts["step graph"] > counts["step graph with kernels"] > 300


def test_bad_arguments(monkeypatch, capsys):
    assert run(monkeypatch, "--rounds", "0") == 2
    if not torch.cuda.is_available():
        assert run(monkeypatch, "--device", "cuda") == 2
        assert "no GPU" in capsys.readouterr().err
