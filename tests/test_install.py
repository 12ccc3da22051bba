"""Installations in environments of their own: they are small, need no PyTorch and no compiler, and edit."""

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
pytestmark = pytest.mark.slow


def output(*command, cwd: Path | None = None, **environment: str) -> str:
    """What a command prints; it must succeed."""
    process = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd,
        env=os.environ | environment,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


def empty_environment(folder: Path) -> Path:
    """The Python of a new virtual environment in `folder`, without pip."""
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the source distribution, not from the repository."""
    folder = tmp_path_factory.mktemp("dist")
    output(*PIP, "install", "-q", "--target", folder / "backend", *PROJECT["build-system"]["requires"])
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(folder)!r})"
    output(sys.executable, "-c", code, cwd=ROOT, PYTHONPATH=str(folder / "backend"))
    (sdist,) = folder.glob("*.tar.gz")
    output(*PIP, "wheel", "-q", "--no-deps", "-w", folder, sdist)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The wheel with the extra `cpu`, installed from the index."""
    folder = tmp_path_factory.mktemp("environment")
    python = empty_environment(folder)
    output(*PIP, "--python", python, "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]")
    return python


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory) -> tuple[Path, str]:
    """`pip install` of a clone without symbolic links, with no program on the path: the Python, and pip's log.

    The packages it needs are those of this process, to save time.
    """
    folder = tmp_path_factory.mktemp("bare")
    output("git", "clone", "-q", "-c", "core.symlinks=false", ROOT, folder / "clone")
    python = empty_environment(folder / "environment")
    packages = output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    outside = [path for path in sys.path if path.endswith("site-packages")]
    (Path(packages) / "outside.pth").write_text("\n".join(outside))
    (folder / "programs").mkdir()
    bare = ("env", "-u", "CC", "-u", "CXX", f"PATH={folder / 'programs'}")
    output(*bare, *PIP, "--python", python, "install", "--no-deps", "--log", folder / "pip.log", folder / "clone")
    return python, (folder / "pip.log").read_text()


def test_it_brings_no_pytorch(python):
    listed = json.loads(output(*PIP, "--python", python, "list", "--format", "json", "--disable-pip-version-check"))
    names = {package["name"].lower() for package in listed}
    assert {"mrc-edit", "numpy", "onnxruntime", "tokenizers", "pillow", "tqdm"} <= names
    assert not names & {"torch", "diffusers", "transformers", "onnx", "safetensors", "accelerate", "matplotlib"}


def edit_with_mini(python: Path, photo, folder: Path) -> None:
    Image.fromarray(photo).save(folder / "photo.png")
    command = [python.parent / "mrc-edit", "mini", folder / "photo.png", "make it night", "-o", folder / "mini.png"]
    output(*command, "--steps", 2, cwd=folder)
    assert Image.open(folder / "mini.png").size == (64, 128)


def test_it_edits(python, tiny_export, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    edit = python.parent / "mrc-edit"
    command = [edit, tiny_export, tmp_path / "photo.png", "snow", "-o", tmp_path / "out.png", "--resolution", 64]
    output(*command, "--steps", 2, "--seed", 1)
    assert Image.open(tmp_path / "out.png").size == (32, 64)
    edit_with_mini(python, photo, tmp_path)


def test_the_demo_runs_from_the_wheel(python, tmp_path):
    output(python, "-m", "mrc_edit.demo", tmp_path / "demo", cwd=tmp_path)
    assert (tmp_path / "demo" / "before_after.png").is_file()


def test_a_checkpoint_needs_the_torch_extra(python, tiny):
    code = f"""
from mrc_edit import Engine, MRCError
try:
    Engine.from_pretrained({str(tiny)!r})
except MRCError as error:
    print(error)
"""
    assert "pip install 'mrc-edit[torch]'" in output(python, "-c", code)


def test_importing_the_engine_imports_no_runtime(python):
    """Why it takes under half a second: README gives the figure."""
    heavy = ("onnxruntime", "torch", "matplotlib", "mrc_edit.kernels")
    code = f"import sys; from mrc_edit import Engine; print(*(name for name in {heavy} if name in sys.modules))"
    assert output(python, "-c", code).split() == []


def test_an_edit_needs_no_kernels(python):
    code = """
import sys
from PIL import Image
from mrc_edit import Engine
Engine.from_pretrained("mini").edit(Image.new("RGB", (64, 64)), "make it night", num_inference_steps=1)
print(*(name for name in sys.modules if name.startswith("mrc_edit.kernels")))
"""
    assert output(python, "-c", code).split() == []


def test_without_a_compiler_it_installs_says_so_and_edits(without_compiler, photo, tmp_path):
    python, log = without_compiler
    assert "No C++ compiler" in log and "the native kernels are not built" in log
    code = "import mrc_edit; from mrc_edit.kernels.native import find, LIBRARY; print(mrc_edit.__file__, find(LIBRARY))"
    path, library = output(python, "-c", code, cwd=tmp_path).split()
    assert Path(path).is_relative_to(python.parents[1]) and library == "None"
    edit_with_mini(python, photo, tmp_path)
