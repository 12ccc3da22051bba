"""The type check finds what it should: three planted errors turn it red."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLANTED = """
import numpy as np
import torch

from mrc_edit.engine.backends.base import Backend
from mrc_edit.engine.plan import make_plan

torch.zeros(3, dtype="float32")  # planted: dtype
make_plan([], [], 7.5, 1.5).item  # planted: attribute


class Silent(Backend):
    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        return images


Silent()  # planted: methods
"""


def lay_out(folder: Path) -> Path:
    """The package as it is installed, by links, as `make lint` does."""
    parts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]["packages"]
    for installed, source in parts.items():
        (folder / installed).parent.mkdir(parents=True, exist_ok=True)
        (folder / installed).symlink_to(ROOT / source)
    return folder


def test_planted_errors_are_found(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text(PLANTED)
    settings = (ROOT / "pyproject.toml").read_text().replace('"build/types"', f'"{lay_out(tmp_path / "types")}"')
    (tmp_path / "pyproject.toml").write_text(settings.replace('packages = ["mrc_edit"]\n', ""))
    command = [sys.executable, "-m", "mypy", "--config-file", tmp_path / "pyproject.toml"]
    command += ["--cache-dir", ROOT / ".mypy_cache" / "planted", planted]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if line.startswith("planted.py:")}
    expected = {i for i, line in enumerate(PLANTED.splitlines(), 1) if "# planted" in line}
    assert expected <= lines, done.stdout + done.stderr
    words = ("dtype", 'has no attribute "item"', "abstract")
    assert all(word in done.stdout for word in words), done.stdout
