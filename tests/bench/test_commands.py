"""Every command under bench/ runs as a script, can be imported, and hides nobody's package."""

import importlib
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import mrc_edit.bench

BENCH = Path(mrc_edit.bench.__file__).parent
COMMANDS = sorted(
    path.stem for path in BENCH.glob("*.py") if 'if __name__ == "__main__":' in path.read_text().splitlines()
)


def run(*command, **options):
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, cwd=BENCH.parent, **options
    )


def test_there_are_commands():
    assert {"latency", "operators", "quality", "training"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_as_a_script(name):
    done = run(f"bench/{name}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name):
    module = importlib.import_module(f"mrc_edit.bench.{name}")
    silent = [action.dest for action in module.arguments()._actions if not action.help]
    assert not silent


def test_an_error_of_a_module_is_one_line_and_status_2():
    done = run("-m", "mrc_edit.bench.scaling", "nowhere", "nowhere", "--sizes", "big")
    assert done.returncode == 2
    assert done.stderr == "error: --sizes is 'big'; give whole numbers from 1 up, separated by commas\n"


def test_no_module_hides_a_package():
    """Python puts a script's folder first on its path."""
    ours = {path.stem for path in BENCH.iterdir() if path.suffix == ".py" or path.is_dir()}
    others = set(sys.stdlib_module_names) | packages_distributions().keys() | {"kernels"}
    assert not (ours - {"__init__", "__pycache__"}) & (others - {"mrc_edit"})
