"""`pip install '.[cpu]'` in an environment of its own: small, without PyTorch, and it edits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{ROOT}[cpu]"], check=True, cwd=folder
    )
    return python


def output(*command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_brings_no_pytorch(python):
    names = {package["name"].lower() for package in json.loads(output(python, "-m", "pip", "list", "--format", "json"))}
    assert {"mrc-edit", "numpy", "onnxruntime", "tokenizers", "pillow", "tqdm"} <= names
    assert not names & {"torch", "diffusers", "transformers", "onnx", "safetensors", "accelerate", "matplotlib"}


def test_it_edits(python, tiny_export, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    edit = python.parent / "mrc-edit"
    command = [edit, tiny_export, tmp_path / "photo.png", "snow", "-o", tmp_path / "out.png", "--resolution", 64]
    output(*command, "--steps", 2, "--seed", 1)
    assert Image.open(tmp_path / "out.png").size == (64, 128)
    output(edit, "mini", tmp_path / "photo.png", "make it night", "-o", tmp_path / "mini.png", "--steps", 2)
    assert Image.open(tmp_path / "mini.png").size == (64, 128)


def test_a_checkpoint_needs_the_torch_extra(python, tiny):
    code = f"""
from mrc_edit.engine import Engine, MRCError
try:
    Engine.from_pretrained({str(tiny)!r})
except MRCError as error:
    print(error)
"""
    assert "pip install 'mrc-edit[torch]'" in output(python, "-c", code)


def test_importing_the_engine_imports_no_runtime(python):
    """Why it takes under half a second: README gives the figure."""
    code = (
        "import sys, mrc_edit.engine; print(*(m for m in ('onnxruntime', 'torch', 'matplotlib') if m in sys.modules))"
    )
    assert output(python, "-c", code).split() == []
