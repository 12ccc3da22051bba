import json

import pytest

from mrc_edit.bench import training
from mrc_edit.core.errors import MRCError


def run(*arguments):
    training.run(training.arguments().parse_args([*map(str, arguments)]))


def test_both_ways_are_measured(plain, tmp_path, capsys):
    run(plain, "--resolution", 64, "--batch-size", 2, "--steps", 2, "--rounds", 1, "--json", tmp_path / "t.json")
    report = json.loads((tmp_path / "t.json").read_text())
    for mode in ("pictures", "cached"):
        assert report[mode]["images_per_s"] > 0 and report[mode]["peak_bytes"] > 50e6
    ratio = report["cached"]["images_per_s"] / report["pictures"]["images_per_s"]
    assert report["caching_gains"]["median"] == pytest.approx(ratio)
    assert "caching gains" in capsys.readouterr().out


def test_what_cannot_be_measured(plain):
    with pytest.raises(MRCError, match="--steps is 1"):
        run(plain, "--steps", 1)


def test_an_error_of_a_training_run_ends_the_benchmark(tmp_path):
    with pytest.raises(MRCError, match=str(tmp_path)):
        run(tmp_path, "--resolution", 64, "--rounds", 1)
