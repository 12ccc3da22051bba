import json

import pytest
import torch

from mrc_edit.bench import operators
from mrc_edit.core.errors import MRCError
from mrc_edit.kernels import ops


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(operators, "CHANNELS", 64)
    monkeypatch.setattr(operators, "LEVELS", ((64, 8),))
    case = operators.reward_case
    monkeypatch.setattr(operators, "reward_case", lambda side, *rest: case(side // 8, *rest))


def run(*arguments):
    operators.run(operators.arguments().parse_args(arguments))


def test_timings_stand_beside_their_errors(small, tmp_path, capsys):
    run("--rounds", "2", "--json", str(tmp_path / "k.json"), "--csv", str(tmp_path / "k.csv"))
    report = json.loads((tmp_path / "k.json").read_text())["timings"]
    assert {name.split()[0] for name in report} == {"reward_block", "group_norm_silu"}
    for row in report.values():
        assert 0 < row["error"] <= 1e-5 and row["least"] <= row["speedup"] <= row["greatest"]
    assert "reward_block" in capsys.readouterr().out
    assert len((tmp_path / "k.csv").read_text().splitlines()) == 1 + len(report)


def test_eager_and_ours_do_the_same(small):
    for case in operators.cases(torch.float32, "cpu"):
        if case.name.startswith(("reward", "group")):
            torch.testing.assert_close(case.ours(), case.eager(), rtol=1e-3, atol=1e-4)


def test_a_wrong_kernel_is_not_timed(small, monkeypatch):
    right = ops.group_norm_silu
    monkeypatch.setattr(ops, "group_norm_silu", lambda *args: right(*args) * 1.001)
    with pytest.raises(MRCError, match="group_norm_silu"):
        run("--rounds", "1")


def test_bad_arguments():
    with pytest.raises(MRCError, match="--rounds"):
        run("--rounds", "0")
    if not torch.cuda.is_available():
        with pytest.raises(MRCError, match="no GPU"):
            run("--device", "cuda")


def test_the_sampler_step_is_its_reference():
    assert operators.step_case(8, "cpu").error <= 1e-6
