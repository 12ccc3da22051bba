import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest

from mrc_edit.engine.graphs import DYNAMIC
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.export.options import OPSET, OPSETS
from mrc_edit.export.trace import trace
from mrc_edit.model import load_checkpoint

NODES = {"Attention": 23, "GroupNormalization": 21}  # and the first opset in which the exporter keeps them whole


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_a_graph_of_another_opset_computes_the_same(tiny, tiny_export, tmp_path, opset):
    checkpoint = load_checkpoint(tiny)
    usual = read_manifest(tiny_export).artifact("unet", "onnx")
    other = trace(checkpoint, "unet", "float32", tmp_path, "unet/model.onnx", opset=opset)
    assert other == dataclasses.replace(usual, path=other.path, difference=None)  # the same inputs and outputs
    model = onnx.load(tmp_path / other.path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    operators = {node.op_type for node in model.graph.node}
    assert {name for name in NODES if name in operators} == {name for name, first in NODES.items() if opset >= first}

    sizes = dict.fromkeys(DYNAMIC, 2) | {"height": 16, "width": 32, "rows": 2, "columns": 4}
    random = np.random.RandomState(0)
    feeds = {}
    for name, (kind, *dims) in usual.inputs.items():
        shape = [sizes.get(dim, dim) for dim in dims]
        feeds[name] = random.randint(0, 2, shape) if kind == "int64" else random.randn(*shape).astype(np.float32)
    expected, found = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
        for path in (tiny_export / usual.path, tmp_path / other.path)
    )
    for one, two in zip(expected, found, strict=True):
        assert np.abs(one - two).max() <= 1e-5 * np.abs(one).max()


def test_the_usual_opset_keeps_operators_whole(tiny_export):
    model = onnx.load(tiny_export / "unet" / "model.onnx", load_external_data=False)
    assert model.opset_import[0].version == OPSET
    assert NODES.keys() <= {node.op_type for node in model.graph.node}
