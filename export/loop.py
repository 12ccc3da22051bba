"""All steps as one graph: an ONNX `Loop` over the exported step graph and the sampler.

It is made from the step graph's nodes, without tracing again, and shares its weights on disk. What no
step changes is computed before the loop; weights lie inside, where runtimes lay them out for their kernels.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..engine.contract import INTEGERS, LOOP
from ..engine.manifest import Artifact

FILE = "loop.onnx"  # beside the step graph: runtimes read no weights from another folder
TYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}


def add_loop(folder: Path, step: Artifact) -> Artifact:
    """Write the loop over the step graph `step` of an export, and describe it."""
    path = str(Path(step.path).with_name(FILE))
    constant: dict[str | int, int] = {
        "latent_channels": step.outputs["noise"][2],
        "time_channels": step.inputs["time_bias"][-1],
    }
    described = {
        name: ["int64" if name in INTEGERS else "float32", *(constant.get(dim, dim) for dim in dims)]
        for name, dims in LOOP.items()
    }
    inputs = described | {name: dims for name, dims in step.inputs.items() if name not in {*LOOP, "sample"}}
    model = ir.load(folder / step.path)
    put_in_loop(model, {name: ir.val(name, TYPES[kind], dims) for name, (kind, *dims) in inputs.items()})
    ir.save(model, folder / path)
    return Artifact("unet_loop", "onnx", step.precision, path, inputs, {"final": described["latents"]})


def put_in_loop(model: ir.Model, inputs: dict[str, ir.Value]) -> None:
    """Turn the step graph `model` into the loop with these inputs, in place."""
    graph = model.graph
    step = {str(value.name): value for value in graph.inputs}
    noise = graph.outputs[0]
    graph.outputs.clear()
    graph.outputs.append(noise)
    RemoveUnusedNodesPass()(model)  # those of the deep features
    nodes = inner_nodes(graph)
    graph.remove(nodes)

    latents = inputs["latents"]
    number, going = ir.val("step", ir.DataType.INT64, []), ir.val("going", ir.DataType.BOOL, [])
    before, data = (ir.val(name, latents.dtype, latents.shape) for name in ("step_latents", "step_data"))
    body = ir.Graph([number, going, before, data], [], nodes=[], name="step")
    tape = ir.tape.Tape(body)
    row = tape.op("Gather", [inputs["table"], number])
    scale, *coefficients = tape.op_multi_out("Split", [row], {"axis": 0, "num_outputs": 7}, num_outputs=7)
    scaled = tape.op("Mul", [tape.op("Gather", [before, inputs["item"]]), scale])
    sample = tape.op("Concat", [scaled, inputs["source"]], {"axis": 1})
    fresh, bias = (tape.op("Gather", [inputs[name], number]) for name in ("fresh", "time_bias"))
    body.extend(nodes)
    a, b, c, e, p, q = coefficients
    after = total(tape, [(a, before), (b, noise), (c, data), (e, fresh)])
    data = total(tape, [(p, before), (q, noise)])
    # not `going`, which the parser of TensorRT does not know where the loop is given no condition
    on = tape.op("Constant", [], {"value": ir.tensor(np.bool_(True))})
    body.outputs.extend([on, after, data])
    for value, like in zip(body.outputs, body.inputs[1:], strict=True):
        value.type, value.shape = like.type, like.shape
    for i, node in enumerate(node for node in body if node not in set(nodes)):  # names are unique in all graphs
        node.name = f"loop_{i}"
        for k, value in enumerate(node.outputs):
            value.name = f"loop_{i}_{k}"

    replaced = {"sample": sample, "time_bias": bias}
    for name, value in step.items():
        ir.convenience.replace_all_uses_with(value, replaced[name] if name in replaced else inputs[name])
    for name, value in list(graph.initializers.items()):
        if all(use.node.graph is body for use in value.uses()):
            del graph.initializers[name]
            body.register_initializer(value)
    graph.inputs.clear()
    graph.inputs.extend(inputs.values())
    graph.outputs.clear()
    tape = ir.tape.Tape(graph)
    steps = tape.op("Squeeze", [tape.op("Shape", [inputs["table"]], {"end": 1})])
    none = tape.op("Sub", [latents, latents])  # the first step has no data of an earlier one
    final, _ = tape.op_multi_out("Loop", [steps, None, latents, none], {"body": body}, num_outputs=2)
    final.name, final.type, final.shape = "final", latents.type, latents.shape
    graph.outputs.append(final)


def inner_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that a step changes, and those on weights alone that only such nodes use."""
    known, changing = set(graph.initializers.values()), {v for v in graph.inputs if v.name in ("sample", "time_bias")}
    inner, constant = [], []
    for node in graph:
        if changing.intersection(node.inputs):
            inner.append(node)
            changing.update(node.outputs)
        elif known.issuperset(value for value in node.inputs if value is not None):
            constant.append(node)
            known.update(node.outputs)
    inside = set(inner)
    for node in reversed(constant):
        if inside.issuperset(use.node for value in node.outputs for use in value.uses()):
            inside.add(node)
    return [node for node in graph if node in inside]


def total(tape: ir.tape.Tape, terms: list[tuple[ir.Value, ir.Value]]) -> ir.Value:
    """Sum of coefficients times values."""
    products = [tape.op("Mul", list(term)) for term in terms]
    while len(products) > 1:
        products = [tape.op("Add", products[:2]), *products[2:]]
    return products[0]
