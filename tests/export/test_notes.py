import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from mrc_edit.engine.graphs import DYNAMIC, GRAPHS, shapes
from mrc_edit.engine.shipped import MODELS
from mrc_edit.export.notes import annotate, note

EXPORT = MODELS["mini"] / "onnx"


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_names_its_open_dimensions_and_says_what_they_are(graph, tmp_path):
    """On graphs of an export, given the names of the tracer's own kind anew."""
    model = onnx_ir.load(EXPORT / graph / "model.onnx")
    for side in (model.graph.inputs, model.graph.outputs):
        for value in side:
            anonymous = [dim if isinstance(dim, int) else f"s{abs(hash(str(dim))) % 999}" for dim in value.shape]
            value.shape, value.doc_string = onnx_ir.Shape(anonymous), None
    inputs, outputs = shapes(graph, rewards=True)
    annotate(model, graph, inputs | outputs, {"graph": graph})
    (tmp_path / graph).mkdir()
    onnx_ir.save(model, tmp_path / graph / "model.onnx", external_data="model.onnx.data")

    written = onnx.load(tmp_path / graph / "model.onnx", load_external_data=False)
    assert graph == written.graph.name and "docs/graphs.md" in written.doc_string
    assert {entry.key: entry.value for entry in written.metadata_props}["graph"] == graph
    sides = ((written.graph.input, inputs), (written.graph.output, outputs))
    for value, dims in ((value, wanted[value.name]) for values, wanted in sides for value in values):
        found = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        constants = [number for number in found if isinstance(number, int)]
        assert [dim for dim in found if isinstance(dim, str)] == [dim for dim in dims if dim in DYNAMIC]
        assert len(found) == len(dims) and all(constants) and value.doc_string == note(graph, value.name)

    sessions = (
        onnxruntime.InferenceSession(folder / graph / "model.onnx", providers=["CPUExecutionProvider"])
        for folder in (EXPORT, tmp_path)
    )
    sizes = dict.fromkeys(DYNAMIC, 2) | {"height": 32, "width": 64, "rows": 8, "columns": 16}
    random = np.random.RandomState(0)
    feeds = {}
    for name, dims in inputs.items():
        listed = next(value for value in written.graph.input if value.name == name).type.tensor_type.shape.dim
        shape = [sizes.get(dim, size.dim_value) for dim, size in zip(dims, listed, strict=True)]
        integers = name in ("input_ids", "branch")
        feeds[name] = random.randint(0, 2, shape) if integers else random.rand(*shape).astype(np.float32)
    before, after = (session.run(None, feeds) for session in sessions)
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
