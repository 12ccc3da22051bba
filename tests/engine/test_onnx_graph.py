from pathlib import Path

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.onnx_graph import check_graph

onnx = pytest.importorskip("onnx")
MINI = Path(__file__).parents[2] / "mini" / "onnx"
HERE = Path("model.onnx")


def model(nodes, functions=(), domains=()):
    """The bytes of a model of `nodes`, from `x` to `y`."""
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [h.make_tensor_value_info(name, kind, ["N"]) for name in ("x", "y")]
    imports = [h.make_opsetid("", 21), *(h.make_opsetid(domain, 1) for domain in domains)]
    graph = h.make_graph(nodes, "g", ends[:1], ends[1:])
    return h.make_model(graph, opset_imports=imports, functions=functions).SerializeToString()


def loop():
    h = onnx.helper
    value = onnx.helper.make_tensor_value_info
    inside = h.make_graph(
        [h.make_node("Identity", ["c"], ["d"]), h.make_node("Identity", ["v"], ["w"])],
        "body",
        [value("i", onnx.TensorProto.INT64, []), value("c", onnx.TensorProto.BOOL, []), value("v", 1, None)],
        [value("d", onnx.TensorProto.BOOL, []), value("w", 1, None)],
    )
    return h.make_node("Loop", ["n", "t", "x"], ["y"], body=inside)


def function():
    h = onnx.helper
    twice = h.make_function(
        "own", "Twice", ["a"], ["b"], [h.make_node("Add", ["a", "a"], ["b"])], [h.make_opsetid("", 21)]
    )
    return model([h.make_node("Twice", ["x"], ["y"], domain="own")], [twice], ["own"])


@pytest.mark.parametrize("path", sorted(MINI.glob("*/model.onnx")), ids=lambda path: path.parent.name)
def test_what_the_export_writes_passes(path):
    check_graph(path.read_bytes(), path)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: model([loop()]), "the operator Loop, with a graph inside"),
        (lambda: model([onnx.helper.make_node("Evil", ["x"], ["y"], domain="evil")], (), ["evil"]), "evil.Evil"),
        (function, "functions"),
    ],
)
def test_what_could_run_for_ever_is_refused(make, what):
    with pytest.raises(MRCError, match=f"has .*{what}.* never writes"):
        check_graph(make(), HERE)


def test_numbers_and_names_of_any_kind_are_passed_over():
    node = onnx.helper.make_node("Identity", ["x"], ["y"], f=1.5, i=-(2**62), fs=[0.1] * 9, s="g" * 300)
    check_graph(model([node]), HERE)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 30, b"{}", b"\x3a\x7f"])
def test_other_files_are_no_graphs(content):
    with pytest.raises(MRCError, match="is no ONNX graph"):
        check_graph(content, HERE)
