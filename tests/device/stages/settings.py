"""Where the device check works and how much it does; nothing here imports PyTorch.

`OUT` is the folder of the results, `MRC_WORK` that of checkpoint and libraries. `MRC_DRY=1` runs on a CPU with a tiny
model; `MRC_REPEATS` is how often a kernel must repeat its result, `MRC_SIZES` names the sides of the edits.
"""

import os
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DRY = os.environ.get("MRC_DRY", "") == "1"
OUT = Path(os.environ.get("OUT", "/tmp/mrc-out"))


def work_folder() -> Path:
    """Memory as a disk where there is room for the 4 GB checkpoint."""
    shared = Path("/dev/shm")
    return Path("/dev/shm/mrc" if shared.is_dir() and shutil.disk_usage(shared).free > 12e9 else "/tmp/mrc")


WORK = Path(os.environ.get("MRC_WORK") or work_folder())
CHECKPOINT, REFERENCE, PACKAGE = WORK / "checkpoint", WORK / "reference", WORK / "package"
DEVICE = "cpu" if DRY else "cuda"
SIZES = tuple(map(int, os.environ.get("MRC_SIZES", "64" if DRY else "512,256").split(",")))  # pixels of a side
STEPS = 2 if DRY else 30
REPEATS = int(os.environ.get("MRC_REPEATS", "3" if DRY else "50"))
TEXT = "make it look like a snowy winter scene"


def lay_out_package() -> None:
    """Lay the folders out as they are installed: links, and a copy of kernels/ for the libraries of stage `build`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for target, source in settings["tool"]["scikit-build"]["wheel"]["packages"].items():
        path = PACKAGE / target
        path.parent.mkdir(parents=True, exist_ok=True)
        if source == "kernels":
            shutil.copytree(ROOT / source, path, dirs_exist_ok=True)
        elif not path.is_symlink():
            path.symlink_to(ROOT / source)


def make_importable() -> None:
    """Let this process and its children import `mrc_edit`, which need not be installed."""
    sys.path.insert(0, str(PACKAGE))
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(PACKAGE)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), *others])
