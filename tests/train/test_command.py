import json
import subprocess
import sys
from pathlib import Path

import pytest

from mrc_edit.train import loop
from mrc_edit.train.command import main

COMMAND = Path(sys.executable).parent / "mrc-train"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code, capsys.readouterr()


def test_the_installed_command_trains(plain, tmp_path):
    flags = "--data miniature:4 --resolution 64 --batch-size 2 --steps 1 --workers 0 --validate-every 0 --stage 1"
    command = [COMMAND, plain, *flags.split(), "--no-augment", "--out", tmp_path / "o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "o" / "checkpoint")
    config = json.loads((tmp_path / "o" / "training.json").read_text())["config"]
    assert config["augment"] is False and config["stage"] == 1


def test_one_of_several_processes_prints(plain, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *arguments: "the checkpoint")
    printed = {}
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        printed[rank] = run(capsys, plain, "--data", "miniature:4", "--out", tmp_path)[1].out
    assert printed == {"0": "the checkpoint\n", "1": ""}


@pytest.mark.parametrize(
    ("arguments", "module"),
    [(("CHECKPOINT", "--data", "miniature:4"), "loop"), (("--preset", "mini"), "miniature.recipe")],
)
def test_a_missing_package_is_one_line(tmp_path, capsys, monkeypatch, arguments, module):
    monkeypatch.setitem(sys.modules, f"mrc_edit.train.{module}", None)  # as an import that fails
    code, captured = run(capsys, *arguments, "--out", tmp_path)
    assert code == 2 and "pip install 'mrc-edit[train,cpu]'" in captured.err


def test_mini_refuses_a_seed_that_cannot_be(tmp_path, capsys):
    code, captured = run(capsys, "--preset", "mini", "--out", tmp_path / "o", "--seed", -1)
    assert code == 2 and "seed is -1" in captured.err and not (tmp_path / "o").exists()


def test_a_preset_gives_way_to_flags(plain, tmp_path, capsys):
    code, _ = run(capsys, plain, "--preset", "mini", "--steps", 1, "--batch-size", 2, "--data", "miniature:2", "--out",
                  tmp_path / "o", "--workers", 0, "--validate-every", 0, "--tracker", "")  # fmt: skip
    assert code == 0
    config = json.loads((tmp_path / "o" / "training.json").read_text())["config"]
    assert (config["batch_size"], config["resolution"], config["lr_schedule"]) == (2, 128, "cosine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "huge"), "huge"),
        ((), "--data, --out"),
        (("--data", "miniature:4", "--out", "{tmp}", "--stage", 3), "stage is 3"),
        (("--data", "miniature:4", "--out", "{tmp}/o", "--cache", "{tmp}/c"), "--no-augment"),
        (("--data", "{tmp}/none", "--out", "{tmp}/o", "--workers", 0), "does not exist"),
        (("--data", "miniature:4", "--out", "{tmp}", "--resume", "5"), "no state of step '5'"),
    ],
)
def test_what_cannot_be_run(plain, tmp_path, capsys, arguments, message):
    code, captured = run(capsys, plain, *(str(a).format(tmp=tmp_path) for a in arguments))
    assert code == 2 and message in captured.err


@pytest.mark.parametrize(
    "words",
    ["CUDA out of memory. Tried to allocate 2 GiB.\nSee", "CPUAllocator: can't allocate memory: 9 bytes"],
)
def test_want_of_memory_is_one_line(plain, tmp_path, capsys, monkeypatch, words):
    def train(*arguments):
        raise RuntimeError(words)

    monkeypatch.setattr(loop, "train", train)
    code, captured = run(capsys, plain, "--data", "miniature:4", "--out", tmp_path / "o")
    assert code == 2 and len(captured.err.splitlines()) == 1 and "--accumulation" in captured.err


def test_no_folder_to_start_from(tmp_path, capsys):
    code, captured = run(capsys, tmp_path, "--data", "miniature:4", "--out", tmp_path / "o")
    assert code == 2 and "model_index.json" in captured.err
