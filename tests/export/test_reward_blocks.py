"""Rewards after every block (`reward_injection="blocks"`) in exports, against the eager pipeline."""

from importlib.util import find_spec

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.export.exporter import export

LATENT = {"num_inference_steps": 4, "resolution": 0, "output_type": "latent", "seed": 3, "scheduler": "euler"}


def engines():
    """Options of an export with TensorRT's engines, where it is installed."""
    there = find_spec("tensorrt_rtx_bindings") is not None
    return {"trt": True, "sizes": (64, 128, 256), "max_batch": 2} if there else {}


def test_every_graph_is_the_eager_model(blocks_export):
    artifacts = read_manifest(blocks_export).artifacts
    assert len(artifacts) == 6
    for artifact in artifacts:
        assert 0 < artifact.difference <= 1e-5, artifact.role


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("float16", 1e-2), ("bfloat16", 5e-2)])
def test_half_precision_is_near(blocks, traced_once, tmp_path, dtype, most):
    artifacts = [a for a in export(blocks, tmp_path / "out", dtype=dtype).artifacts if a.difference is not None]
    assert artifacts and all(1e-6 < artifact.difference <= most for artifact in artifacts)
    if dtype == "bfloat16":
        with pytest.raises(MRCError, match="bfloat16"):  # ONNX Runtime's CPU kernels have none
            Engine.from_pretrained(tmp_path / "out", "onnxruntime")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is not installed (extra int8)")
def test_int8_is_near(blocks, traced_once, tmp_path, pictures, photo, error):
    from mrc_edit.export.quantize import LIMIT

    manifest = export(blocks, folder := tmp_path / "out", int8=pictures, **engines())
    quantized = [a for a in manifest.artifacts if (a.precision, a.runtime) == ("int8", "onnx")]
    assert {a.role for a in quantized} == {"unet", "unet_shallow"} and all(a.difference < LIMIT for a in quantized)
    built = [a for a in manifest.artifacts if a.runtime != "onnx"]
    assert len(built) == (8 if engines() else 0)
    for engine in built:
        graph = manifest.artifact(engine.role, "onnx", engine.precision)
        assert engine.inputs == graph.inputs and (folder / engine.path).stat().st_size > 10_000
    expected = Engine.from_pretrained(blocks, "eager").edit(photo, "a dog", **LATENT).images
    for backend in ("onnxruntime", "openvino"):
        engine = Engine.from_pretrained(folder, backend, precision="int8")
        assert 1e-4 < error(engine.edit(photo, "a dog", **LATENT).images, expected) < 0.15
