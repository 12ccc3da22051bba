import json
import sys

import pytest

from mrc_edit.bench import training


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        training.main()
    return stop.value.code


def test_both_ways_are_measured(plain, tmp_path, monkeypatch, capsys):
    arguments = ("--resolution", 64, "--batch-size", 2, "--steps", 2, "--rounds", 1, "--json", tmp_path / "t.json")
    assert run(monkeypatch, plain, *arguments) == 0
    report = json.loads((tmp_path / "t.json").read_text())
    for mode in ("pictures", "cached"):
        assert report[mode]["images_per_s"] > 0 and report[mode]["peak_bytes"] > 50e6
    ratio = report["cached"]["images_per_s"] / report["pictures"]["images_per_s"]
    assert report["caching_gains"]["median"] == pytest.approx(ratio)
    assert "caching gains" in capsys.readouterr().out


def test_what_cannot_be_measured(plain, monkeypatch, capsys):
    assert run(monkeypatch, plain, "--steps", 1) == 2
    assert "--steps is 1" in capsys.readouterr().err
