"""int8 step graphs."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.export.calibration import pairs

pytest.importorskip("nncf", reason="NNCF is not installed")
from mrc_edit.export import quantize
from mrc_edit.export.exporter import export
from mrc_edit.export.sensitivity import BUDGET

pytestmark = pytest.mark.slow
LATENT = {"num_inference_steps": 4, "resolution": 0, "output_type": "latent", "seed": 3, "scheduler": "euler"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_both_runtimes_read_it_and_stay_near(full_export, tiny_export, photo, backend, error):
    found = Engine.from_pretrained(full_export, backend, precision="int8").edit(photo, "a dog", **LATENT).images
    exact = Engine.from_pretrained(tiny_export).edit(photo, "a dog", **LATENT).images
    assert 1e-4 < error(found, exact) < 0.15


def test_turbo_takes_int8(full_export):
    engine = Engine.from_pretrained(full_export, tier="turbo")
    assert engine.backend.precision == "int8" and engine.tier.guidance_every == 2


def test_the_report_explains_the_choice(full_export):
    manifest = read_manifest(full_export)
    for role in ("unet", "unet_shallow"):
        report = json.loads((full_export / f"{role}_int8" / quantize.REPORT).read_text())
        kept = [layer for layer in report["layers"] if layer["int8"]]
        assert kept and sum(layer["error"] ** 2 for layer in kept) <= BUDGET**2
        assert report["layers"] == sorted(report["layers"], key=lambda layer: -layer["error"])
        assert manifest.artifact(role, "onnx", "int8").difference == report["error"] <= quantize.LIMIT


def test_weights_are_stored_in_int8(full_export):
    sizes = [(full_export / name / "model.onnx.data").stat().st_size for name in ("unet_int8", "unet")]
    assert sizes[0] < 0.6 * sizes[1]


def test_zero_is_at_zero(full_export):
    """All that TensorRT takes."""
    model = onnx.load(full_export / "unet_int8" / "model.onnx")
    values = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    zeros = [values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(zeros) > 10 and all(zero.dtype == np.int8 and zero == 0 for zero in zeros)


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is missing (extra trt-rtx)")
def test_tensorrt_gets_the_same_graphs(full_export):
    manifest = read_manifest(full_export)
    for role in ("unet", "unet_shallow"):
        engine, graph = (manifest.artifact(role, runtime, "int8") for runtime in ("tensorrt_rtx", "onnx"))
        assert engine.inputs == graph.inputs and (full_export / engine.path).stat().st_size > 10_000


def test_a_changed_byte_is_refused(full_export, tmp_path):
    shutil.copytree(full_export, tmp_path / "copy")
    weights = tmp_path / "copy" / "unet_int8" / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(MRCError, match="SHA-256 differs"):
        Engine.from_pretrained(tmp_path / "copy", precision="int8")


def test_an_export_without_int8_says_what_to_do(tiny_export):
    with pytest.raises(MRCError, match="mrc-export again with --int8"):
        Engine.from_pretrained(tiny_export, tier="turbo")


def test_pictures_and_instructions_are_spread(pictures):
    found = pairs(pictures, 4)
    assert [path.name for path, _ in found] == ["0.png", "0.png", "1.png", "1.png"]
    assert found[0][1] == "make it a sketch" and found[1][1] == "a dog"


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "no images"), ("[1]", "not an object"), ("{", "cannot be read"), ('{"0.png": [3]}', "text")],
)
def test_bad_pictures(tmp_path, pictures, content, word):
    if content is not None:
        shutil.copy(pictures / "0.png", tmp_path)
        (tmp_path / "texts.json").write_text(content)
    with pytest.raises(MRCError, match=word):
        pairs(tmp_path, 2)


def test_a_list_of_edits_counts_as_its_first(tmp_path):
    """As in training."""
    for number, edit in enumerate(("a", ["b", "c"])):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "prompt.json").write_text(json.dumps({"edit": edit}))
        (tmp_path / str(number) / "1_0.jpg").touch()
    assert [text for _, text in pairs(tmp_path, 4)] == ["a", "a", "b", "b"]


def test_int8_starts_from_float32(tiny, pictures, tmp_path):
    with pytest.raises(MRCError, match="float32"):
        export(tiny, tmp_path / "out", dtype="float16", int8=pictures)
