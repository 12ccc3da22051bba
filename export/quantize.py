"""int8 step graphs: ranges by NNCF on real edits, written as QuantizeLinear/DequantizeLinear (Q/DQ) ONNX.

Convolutions and matrix products with constant weights take int8 activations, one scale a tensor, and int8
weights, one scale an output channel, all with zero at zero: TensorRT takes no other. Layers that would move the noise
too far stay as they are.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import openvino
from onnx_ir.passes.common import RemoveUnusedNodesPass
from openvino import opset13 as ops
from tqdm import tqdm

from ..core.errors import MRCError
from ..core.fidelity import relative_error
from ..engine.backends.onnxruntime import cpu
from ..engine.backends.openvino import CORE
from .calibration import step_samples

BARE = "/WithoutBiases"  # what OpenVINO adds to the name of a convolution whose bias it takes apart
CALIBRATION = (6, 256)  # edits, and pixels of the longer side at most
SENSITIVITY = (1, 64)  # small, since every layer takes a pass of its own
REPORT = "layers.json"
LIMIT = 0.2  # fail above this relative error: rounding cannot explain more
BUDGET = 0.03  # relative error of the noise that int8 may cause; bfloat16 causes about 0.02


@dataclass(frozen=True)
class Layer:
    """A layer with constant weights, by the name of its ONNX node."""

    name: str
    weight: str  # shape
    low: float  # of the activations that enter it
    high: float
    operations: int  # multiply-adds of a call on the sensitivity sample
    error: float = 0.0  # relative, of the noise, where this layer alone is int8
    int8: bool = True

    @property
    def peak(self) -> float:
        """Magnitude of the activation that becomes 127."""
        return max(-self.low, self.high, 1e-12)


def quantize_steps(folder: Path, sources: dict[str, str], targets: dict[str, str], images: Path) -> dict[str, float]:
    """Write the step graphs of an export in int8, each with a report of its layers beside it.

    Args:
        sources, targets: paths in `folder` by role.
        images: pictures to calibrate on.

    Returns:
        By role the relative error of the noise on real edits.

    Raises:
        MRCError: no pictures, or an error so great that rounding does not explain it.
    """
    errors = {}
    samples, small = (step_samples(folder, images, *edits) for edits in (CALIBRATION, SENSITIVITY))
    for role, source in sources.items():
        feeds = small if role == "unet_shallow" else small[1:2]  # one sample: the whole graph is slow
        layers = quantize(folder / source, folder / targets[role], samples, feeds)
        errors[role] = difference(folder / source, folder / targets[role], small)
        if not errors[role] <= LIMIT:  # also true of NaN
            raise MRCError(
                f"{role} in int8 moves the noise by {errors[role]:.1e} (relative; at most {LIMIT:g}); "
                "give more pictures, or leave int8 out"
            )
        report = {"budget": BUDGET, "error": errors[role], "layers": [asdict(layer) for layer in layers]}
        (folder / targets[role]).with_name(REPORT).write_text(json.dumps(report, indent=1) + "\n")
    return errors


def quantize(
    source: Path, target: Path, samples: list[dict[str, np.ndarray]], small: list[dict[str, np.ndarray]]
) -> list[Layer]:
    """Write the int8 form of the step graph `source` to `target`.

    Args:
        samples: inputs by name, to find the ranges on; small: of a small picture, on which each layer's share in the
            error of the noise is measured.

    Returns:
        All layers, the greatest error first. Errors of layers are independent, so their squares add. Layers with
        the most error for their work stay in higher precision until the rest is within BUDGET.
    """
    read = CORE.read_model
    ranges = activation_ranges(read(source), samples)
    layers = choose_layers(layer_errors(read(source), ranges, small))
    write_quantized(source, target, [layer for layer in layers if layer.int8])
    return layers


def activation_ranges(model: openvino.Model, feeds: list[dict[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """Least and greatest activation that enters each layer with constant weights, by layer."""
    os.environ.setdefault("NNCF_CI", "1")  # otherwise NNCF reports its use over the network
    import nncf

    names = set(layers_of(model))
    quantized = nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            disable_bias_correction=True,
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1),
        ),
    )
    ranges = {}
    for node in quantized.get_ordered_ops():
        name = node.get_friendly_name().removesuffix(BARE)
        if name not in names:
            continue
        quantizer = node.input_value(0).get_node()
        while quantizer.get_type_name() in ("Reshape", "Transpose"):
            quantizer = quantizer.input_value(0).get_node()
        if quantizer.get_type_name() == "FakeQuantize":
            low, high = (quantizer.input_value(i).get_node().get_data() for i in (1, 2))
            ranges[name] = (float(low.min()), float(high.max()))
    return ranges


def layers_of(model: openvino.Model) -> dict[str, openvino.Node]:
    """Convolutions and matrix products with constant weights, by the name of their ONNX node."""
    return {
        node.get_friendly_name().removesuffix(BARE): node
        for node in model.get_ordered_ops()
        if node.get_type_name() in ("Convolution", "MatMul") and constant(node.input_value(1)) is not None
    }


def constant(output: openvino.Output) -> np.ndarray | None:
    """The float32 values behind an output that depends on no input."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return node.get_data()
    if node.get_type_name() == "Convert":
        inner = constant(node.input_value(0))
        return None if inner is None else inner.astype(np.float32)
    return None


def layer_errors(
    model: openvino.Model, ranges: dict[str, tuple[float, float]], feeds: list[dict[str, np.ndarray]]
) -> list[Layer]:
    """The error of the noise that each layer causes alone in int8.

    Every layer gets a twin with quantized inputs, and a switch between the two that is an input of the model:
    one compiled model serves all layers.
    """
    names = [port.any_name for port in model.inputs]
    feeds = [{name: feed[name] for name in names} for feed in feeds]
    model.reshape({name: list(array.shape) for name, array in feeds[0].items()})
    nodes = {name: node for name, node in layers_of(model).items() if name in ranges}
    switches = ops.parameter([len(nodes)], np.float32, "switches")
    switches.output(0).tensor.set_names({"switches"})
    layers = [
        add_twin(
            node, Layer(name, "", *ranges[name], operations=0), ops.gather(switches, ops.constant(i), ops.constant(0))
        )
        for i, (name, node) in enumerate(nodes.items())
    ]
    twins = openvino.Model(model.get_results()[:1], [*model.get_parameters(), switches], "twins")
    request = CORE.compile_model(twins, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()

    def noise(switched: np.ndarray, feed: dict[str, np.ndarray]) -> np.ndarray:
        request.infer({**feed, "switches": switched})
        return request.get_output_tensor(0).data.copy()

    exact = [noise(np.zeros(len(layers), np.float32), feed) for feed in feeds]
    errors = []
    for switched in tqdm(np.eye(len(layers), dtype=np.float32), desc="sensitivity", unit="layer", disable=None):
        actual = [noise(switched, feed) for feed in feeds]
        errors.append(max(map(relative_error, actual, exact)))
    return [replace(layer, error=error) for layer, error in zip(layers, errors, strict=True)]


def add_twin(node: openvino.Node, layer: Layer, switch: openvino.Node) -> Layer:
    """Replace `node` by a mix of itself (switch 0) and its twin in int8 (switch 1); return the layer described."""
    weight = constant(node.input_value(1))
    assert weight is not None
    attributes = node.get_attributes()
    convolution = node.get_type_name() == "Convolution"
    axis = 0 if convolution or attributes["transpose_b"] else weight.ndim - 1
    values, scale = int8_weight(weight, axis)
    bounds = [ops.constant(np.float32(value)) for value in (-layer.peak * 128 / 127, layer.peak) * 2]
    x, w = ops.fake_quantize(node.input_value(0), *bounds, 256), ops.constant(values * scale)
    if convolution:
        form = (attributes[key] for key in ("strides", "pads_begin", "pads_end", "dilations", "auto_pad"))
        twin = ops.convolution(x, w, *form)
    else:
        twin = ops.matmul(x, w, attributes["transpose_a"], attributes["transpose_b"])
    consumers = node.output(0).get_target_inputs()
    mixed = ops.add(node, ops.multiply(switch, ops.subtract(twin, node)))
    for consumer in consumers:
        consumer.replace_source_output(mixed.output(0))
    positions = np.prod(list(node.get_output_shape(0))) // weight.shape[axis]
    return replace(layer, weight="×".join(map(str, weight.shape)), operations=int(positions * weight.size))


def choose_layers(layers: list[Layer]) -> list[Layer]:
    """Which layers become int8, the greatest error first."""
    total = sum(layer.error**2 for layer in layers)
    spared = set()
    for layer in sorted(layers, key=lambda layer: -(layer.error**2) / layer.operations):
        if total <= BUDGET**2:
            break
        total -= layer.error**2
        spared.add(layer.name)
    return [replace(x, int8=x.name not in spared) for x in sorted(layers, key=lambda layer: -layer.error)]


def difference(source: Path, target: Path, feeds: list[dict[str, np.ndarray]]) -> float:
    """Greatest relative error of the noise of `target` against `source`."""
    noises = []
    for path in (source, target):
        model = CORE.read_model(path)
        names = [port.any_name for port in model.inputs]
        compiled = CORE.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        noises.append([compiled({name: feed[name] for name in names})[0].copy() for feed in feeds])
    return max(relative_error(actual, expected) for expected, actual in zip(*noises, strict=True))


@cache
def greatest_weight() -> int:
    """127, or 64 on an x86-64 CPU without VNNI.

    Such a CPU adds pairs of 8-bit products in 16 bits, which overflow with larger weights. Graphs with the smaller
    range are right on every CPU.
    """
    flags = cpu().split()
    return 127 if not flags or {"avx512_vnni", "avx_vnni"} & set(flags) else 64


def int8_weight(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Values up to ±`greatest_weight` and scales, one an index of `axis`, broadcast to the weight."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True), 1e-12) / np.float32(greatest_weight())
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)


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
