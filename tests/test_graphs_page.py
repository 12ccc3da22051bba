"""docs/graphs.md says what the graphs are, and its two programs edit as the engine does."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.reward import NO_FAULTS
from mrc_edit.engine import Engine
from mrc_edit.engine.graphs import GRAPHS, dtype
from mrc_edit.engine.shipped import MODELS
from mrc_edit.export.notes import GRAPH_NOTES, note

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "graphs"
PAGE = (ROOT / "docs" / "graphs.md").read_text()
EXPORT = MODELS["mini"] / "onnx"
INSTRUCTION = "make it look like a sunset, don't you think? It's 19:00 in Ümeå"
ANCESTRAL = {"scheduler": "euler_ancestral", "num_inference_steps": 4, "guidance_scale": 7.5}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(ROOT / "demo" / "chelsea.jpg").convert("RGB").resize((128, 96))


@pytest.fixture(scope="module")
def expected(picture):
    """`expected(**options)`: the engine's edit as `[H, W, 3]` numbers."""
    engine = Engine.from_pretrained("mini")
    return lambda **options: numbers(engine.edit(picture, INSTRUCTION, resolution=0, **options).images[0])


def numbers(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


@pytest.mark.parametrize("changes", [{}, ANCESTRAL, {"num_inference_steps": 1, "image_guidance_scale": 2.0}])
def test_the_python_program_edits_as_the_engine(picture, expected, changes):
    spec = importlib.util.spec_from_file_location("edit_by_hand", DOCS / "edit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rewards = {"scores": (5, 3, 4), "faults": "None; the cat is gone; None"}
    found = module.edit(EXPORT, picture, INSTRUCTION, seed=3, **rewards, **changes)
    reward = {"reward_scores": rewards["scores"], "reward_text": rewards["faults"]}
    assert np.abs(numbers(found) - expected(seed=3, **reward, **changes)).max() <= 1


def test_the_javascript_program_edits_as_the_engine(picture, expected, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node: apt-get install nodejs")
    packages = "['onnxruntime-node', '@huggingface/tokenizers', 'pngjs'].forEach((name) => require.resolve(name))"
    if subprocess.run([node, "-e", packages], cwd=DOCS, capture_output=True, check=False).returncode:
        pytest.skip("no onnxruntime-node: npm install in docs/graphs, or NODE_PATH to a folder that has it")
    picture.save(tmp_path / "in.png")
    command = [node, "edit.js", EXPORT, tmp_path / "in.png", INSTRUCTION, tmp_path / "out.png", "3"]
    done = subprocess.run(command, cwd=DOCS, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert np.abs(numbers(Image.open(tmp_path / "out.png")) - expected(seed=3)).max() <= 1


def test_the_page_lists_every_input_and_output():
    pattern = re.compile(r"^\| `(\w+)` \| (in|out) \| (\w+) \| `\[(.*?)\]` \| (.*) \|$", re.MULTILINE)
    for graph, row in GRAPHS.items():
        section = PAGE.split(f"### `{graph}`")[1].split("\n### ")[0]
        assert GRAPH_NOTES[graph] in section
        expected = {
            (name, side, dtype(name), ", ".join(map(str, dims)), note(graph, name))
            for side, values in (("in", row.inputs), ("out", row.outputs))
            for name, dims in values.items()
        }
        assert set(pattern.findall(section)) == expected


def test_the_page_has_the_literal_text_of_no_faults():
    assert f"`{NO_FAULTS}`" in PAGE
