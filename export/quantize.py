"""int8 step graphs: ranges by NNCF on real edits, written as QuantizeLinear/DequantizeLinear (Q/DQ) ONNX.

Convolutions and matrix products with constant weights take int8 activations, one scale a tensor, and int8
weights, one scale an output channel, all with zero at zero: TensorRT takes no other. Layers that would move the noise
too far stay as they are.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..core.errors import MRCError
from ..core.fidelity import relative_error
from ..core.memory import return_freed_memory
from ..engine.backends.openvino import CORE
from .calibration import step_samples
from .sensitivity import BUDGET, Layer, activation_ranges, choose_layers, int8_weight, layer_errors

CALIBRATION = (6, 256)  # edits, and pixels of the longer side at most
SENSITIVITY = (1, 64)  # small, since every layer takes a pass of its own
REPORT = "layers.json"
LIMIT = 0.2  # fail above this relative error: rounding cannot explain more


def quantize_steps(folder: Path, sources: dict[str, str], targets: dict[str, str], images: Path) -> dict[str, float]:
    """Write the step graphs of an export in int8, each with a report of its layers beside it.

    Args:
        sources, targets: paths in `folder` by role.
        images: those to calibrate on.

    Returns:
        By role the relative error of the noise on real edits.

    Raises:
        MRCError: no images, or an error so great that rounding does not explain it.
    """
    errors = {}
    samples, small = step_samples(folder, images, CALIBRATION, SENSITIVITY)
    return_freed_memory()
    for role, source in sources.items():
        feeds = small if role == "unet_shallow" else small[1:2]  # one sample: the whole graph is slow
        layers = quantize(folder / source, folder / targets[role], samples, feeds)
        errors[role] = difference(folder / source, folder / targets[role], small)
        if not errors[role] <= LIMIT:  # also true of NaN
            raise MRCError(
                f"{role} in int8 moves the noise by {errors[role]:.1e} (relative; at most {LIMIT:g}); "
                "give more images, or leave int8 out"
            )
        report = {"budget": BUDGET, "error": errors[role], "layers": [asdict(layer) for layer in layers]}
        (folder / targets[role]).with_name(REPORT).write_text(json.dumps(report, indent=1) + "\n")
    return errors


def quantize(
    source: Path, target: Path, samples: list[dict[str, np.ndarray]], small: list[dict[str, np.ndarray]]
) -> list[Layer]:
    """Write the int8 form of the step graph `source` to `target`.

    Args:
        samples: inputs by name, to find the ranges on; small: of a small image, on which each layer's share in the
            error of the noise is measured.

    Returns:
        All layers, the greatest error first. Errors of layers are independent, so their squares add. Layers with
        the most error for their work stay in higher precision until the rest is within BUDGET.
    """
    ranges = activation_ranges(CORE.read_model(source), samples)
    return_freed_memory()
    layers = choose_layers(layer_errors(source, ranges, small))
    write_quantized(source, target, [layer for layer in layers if layer.int8])
    return layers


def difference(source: Path, target: Path, feeds: list[dict[str, np.ndarray]]) -> float:
    """Greatest relative error of the noise of `target` against `source`."""
    return max(map(relative_error, noises(target, feeds), noises(source, feeds)))


def noises(graph: Path, feeds: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """What a step graph computes in float32."""
    model = CORE.read_model(graph)
    names = [port.any_name for port in model.inputs]
    compiled = CORE.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [compiled({name: feed[name] for name in names})[0].copy() for feed in feeds]


def write_quantized(source: Path, target: Path, layers: list[Layer]) -> None:
    """`source` with Q/DQ pairs before the inputs of `layers`, at `target`."""
    model = ir.load(source)
    graph = model.graph
    by_name = {layer.name: layer for layer in layers}
    rounded: dict[tuple, ir.Value] = {}
    for node in list(graph):
        if node.name not in by_name:
            continue
        layer = by_name[node.name]
        x, weight = node.inputs[:2]
        assert x is not None and weight is not None
        key = (x.name, layer.peak)
        if key not in rounded:
            rounded[key] = activation(graph, node, x, layer)
        node.replace_input_with(0, rounded[key])
        node.replace_input_with(1, int8_initializer(graph, node, weight))
    RemoveUnusedNodesPass()(model)
    target.parent.mkdir(parents=True)
    ir.save(model, target, external_data=f"{target.name}.data")


def activation(graph: ir.Graph, node: ir.Node, x: ir.Value, layer: Layer) -> ir.Value:
    """`x` rounded to int8 and back, before `node`."""
    scale, zero = np.array(layer.peak / 127, dtype=np.float32), np.array(0, dtype=np.int8)
    step, middle = (initializer(graph, f"{node.name}_{k}", v) for k, v in (("step", scale), ("zero", zero)))
    rounded = ir.node("QuantizeLinear", [x, step, middle], name=f"{node.name}_quantize")
    back = ir.node("DequantizeLinear", [rounded.outputs[0], step, middle], name=f"{node.name}_dequantize")
    graph.insert_before(node, [rounded, back])
    return back.outputs[0]


def int8_initializer(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> ir.Value:
    """An int8 initializer with the values of `weight`, and its way back to float32, before `node`."""
    axis = 0 if node.op_type == "Conv" else 1
    cast = weight.producer()
    stored = weight if cast is None else cast.inputs[0]
    assert stored is not None and stored.const_value is not None
    values, scale = int8_weight(stored.const_value.numpy().astype(np.float32), axis)
    inputs = [initializer(graph, f"{node.name}_{k}", v) for k, v in (("int8", values), ("scales", scale.ravel()))]
    back = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{node.name}_weight")
    graph.insert_before(node, back)
    return back.outputs[0]


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value
