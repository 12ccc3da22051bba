"""TensorRT-RTX builds without a GPU; running its engines needs one."""

import importlib.util
import sys

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.graphs import GRAPHS
from mrc_edit.engine.manifest import read_checked, read_manifest
from mrc_edit.export import tensorrt

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX is not installed (extra trt-rtx)"
)


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["full_export", "float16_export"])
def test_every_graph_gets_an_engine(name, request):
    out = request.getfixturevalue(name)
    manifest = read_manifest(out)
    engines = [artifact for artifact in manifest.artifacts if artifact.runtime == "tensorrt_rtx"]
    assert {engine.role for engine in engines} == set(GRAPHS)
    for name in manifest.files:
        read_checked(out, manifest, name)
    for engine in engines:
        assert (out / engine.path).stat().st_size > 10_000
        assert engine.profile.keys() == engine.inputs.keys()
    unet = next(engine for engine in engines if engine.role == "unet")
    assert unet.profile["sample"] == {"min": [1, 8, 8, 8], "opt": [2, 8, 16, 16], "max": [6, 8, 32, 32]}
    assert unet.profile["guidance"]["max"] == [4, 6]


@needs_rtx
def test_a_graph_that_tensorrt_refuses_is_an_error_in_its_words(tiny_export, tmp_path):
    source = read_manifest(tiny_export).artifact("unet", "onnx")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(MRCError, match="could not build unet"):
        tensorrt.build_engine(tmp_path, source, {})


def test_no_tensorrt_says_what_to_install(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MRCError, match="pip install"):
        tensorrt.load_tensorrt()
