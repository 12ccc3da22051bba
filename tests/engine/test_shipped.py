import json
from pathlib import Path

import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.shipped import MODELS, shipped

MINI = MODELS["mini"]


def test_each_backend_gets_the_folder_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped("mini", "auto") == shipped("mini", "onnxruntime") == MINI / "onnx"
    assert shipped("mini", "eager") == MINI / "checkpoint"
    assert shipped("elsewhere/model", "auto") == Path("elsewhere/model")
    (tmp_path / "mini").mkdir()
    assert shipped("mini", "auto") == MINI / "onnx"  # any folder may have that name
    (tmp_path / "mini" / "manifest.json").write_text("{}")
    assert shipped("mini", "auto") == Path("mini")  # a model of one's own goes first


def test_an_unknown_backend_is_named():
    with pytest.raises(MRCError, match="backend is 'abacus'"):
        Engine.from_pretrained("mini", "abacus")


def test_it_is_small_and_keeps_its_record():
    size = sum(path.stat().st_size for part in ("checkpoint", "onnx") for path in (MINI / part).rglob("*"))
    assert size <= 30_000_000
    records = json.loads((MINI / "training.json").read_text())
    for stage, record in enumerate((records["stage1"], records["stage2"]), 1):
        assert record["config"]["stage"] == stage and record["loss_every_50_steps"] and record["versions"]


def test_the_export_is_the_checkpoint(photo, error):
    arguments = {"num_inference_steps": 3, "seed": 1, "output_type": "latent"}
    found, expected = (
        Engine.from_pretrained("mini", backend).edit(photo, "make it sepia", **arguments).images
        for backend in ("onnxruntime", "eager")
    )
    assert error(found, expected) <= 1e-4  # float16 weights and float32 arithmetic on both sides


def test_it_edits_at_its_own_resolution():
    image = Image.new("RGB", (640, 480), "green")
    assert Engine.from_pretrained("mini").edit(image, "", num_inference_steps=1, seed=0).images[0].size == (128, 96)
