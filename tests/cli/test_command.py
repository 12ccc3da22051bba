import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mrc_edit import __version__
from mrc_edit.cli import command
from mrc_edit.core import console

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
SCRIPTS = {name: getattr(console, entry.split(":")[1]) for name, entry in PROJECT["scripts"].items()}


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(script, *arguments)` → exit status, stdout, stderr."""

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as end:
            SCRIPTS[script]()
        return end.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_its_version(run, name):
    assert run(name, "--version") == (0, f"mrc-edit {__version__}\n", "")


@pytest.mark.parametrize("name", command.available())
def test_every_subcommand_is_its_command(run, name):
    status, own, _ = run("mrc", name, "--help")
    assert status == 0 and own.startswith(f"usage: mrc {name}")
    if f"mrc-{name}" in SCRIPTS:
        assert own.replace(f"mrc {name}", f"mrc-{name}").split() == run(f"mrc-{name}", "--help")[1].split()


def test_every_script_is_a_subcommand(run):
    subcommands = {f"mrc-{name}" for name in command.available()}
    assert SCRIPTS.keys() - {"mrc"} <= subcommands
    listed = run("mrc", "--help")[1]
    assert all(f"\n  {name}" in listed for name in command.available())


def test_its_errors_and_status_are_those_of_the_command(run, tmp_path):
    status, _, stderr = run("mrc", "export", str(tmp_path), str(tmp_path / "out"))
    assert status == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1
    status, _, stderr = run("mrc", "paint")
    assert status == 2 and "'edit'" in stderr


def test_a_new_script_becomes_a_subcommand(monkeypatch):
    seen = []
    monkeypatch.setattr(console, "mrc_convert", lambda: seen.extend(sys.argv), raising=False)
    monkeypatch.setattr(sys, "argv", ["mrc", "convert", "a.ckpt", "--help"])
    command.main()
    assert seen == ["mrc convert", "a.ckpt", "--help"]


def test_what_is_not_installed_names_the_extra(run, monkeypatch):
    extras = {extra for _, names in command.COMMANDS.values() for extra in names.split(",")}
    assert extras <= PROJECT["optional-dependencies"].keys()

    def fail():
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(console, "mrc_train", fail)
    status, _, stderr = run("mrc", "train", "checkpoint")
    assert (status, stderr) == (2, "error: mrc train needs torch; pip install 'mrc-edit[train,cpu]'\n")


def test_a_benchmark_runs(run):
    status, stdout, _ = run("mrc", "bench", "latency", "--help")
    assert status == 0 and stdout.startswith("usage: mrc bench latency") and "--rounds" in stdout
    folder = Path(command.__file__).parents[1] / "bench"
    runnable = {path.stem for path in folder.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert runnable == command.BENCHMARKS.keys()


def test_help_imports_nothing_heavy():
    """In one process, since each start takes a while; numpy is for the commands that compute with it."""
    code = """
import sys
from mrc_edit.core import console
def shown(*arguments):
    sys.argv = list(arguments)
    try:
        console.mrc()
    except SystemExit as end:
        assert not end.code, end.code
shown("mrc", "--version")
shown("mrc", "--help")
print("heavy:", *(name for name in ("numpy", "PIL", "torch", "onnxruntime") if name in sys.modules))
for name in ("edit", "export", "train", "rewards", "bench"):
    shown("mrc", name, "--help")
print("heavy:", *(name for name in ("torch", "onnx", "onnxruntime", "diffusers", "openvino") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("heavy:")] == ["heavy:", "heavy:"]
