"""Which layers of a step graph become int8: the range of what enters each, and the error that each causes alone."""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops
from tqdm import tqdm

from ..core.cpu import cpu_entry
from ..core.fidelity import relative_error
from ..engine.backends.openvino import CORE

BARE = "/WithoutBiases"  # what OpenVINO adds to the name of a convolution whose bias it takes apart
BUDGET = 0.03  # relative error of the noise that int8 may cause; bfloat16 causes about 0.02
GROUP = 2**27  # weights of the layers whose twins are in memory at a time


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
    source: Path, ranges: dict[str, tuple[float, float]], feeds: list[dict[str, np.ndarray]]
) -> list[Layer]:
    """The error of the noise that each layer causes alone in int8, a group of layers after the other."""
    layers: list[Layer] = []
    with tqdm(desc="sensitivity", total=len(ranges), unit="layer", disable=None) as bar:
        for group in groups(layers_of(CORE.read_model(source)), list(ranges)):
            layers += group_errors(CORE.read_model(source), {name: ranges[name] for name in group}, feeds, bar)
    return layers


def groups(nodes: dict[str, openvino.Node], names: list[str]) -> list[list[str]]:
    """`names` in groups of at most `GROUP` weights, or of one layer."""
    found: list[list[str]] = []
    room = 0
    for name in names:
        size = int(np.prod(list(nodes[name].get_input_shape(1))))
        if size > room:
            found.append([])
            room = GROUP
        found[-1].append(name)
        room -= size
    return found


def group_errors(
    model: openvino.Model, ranges: dict[str, tuple[float, float]], feeds: list[dict[str, np.ndarray]], bar: tqdm
) -> list[Layer]:
    """`layer_errors` of the layers in `ranges`.

    Each gets a twin with quantized inputs, and a switch between the two that is an input of the model: one compiled
    model serves them all.
    """
    names = [port.any_name for port in model.inputs]
    feeds = [{name: feed[name] for name in names} for feed in feeds]
    model.reshape({name: list(array.shape) for name, array in feeds[0].items()})
    nodes = layers_of(model)
    switches = ops.parameter([len(ranges)], np.float32, "switches")
    switches.output(0).tensor.set_names({"switches"})
    layers = [
        add_twin(
            nodes[name], Layer(name, "", *bounds, operations=0), ops.gather(switches, ops.constant(i), ops.constant(0))
        )
        for i, (name, bounds) in enumerate(ranges.items())
    ]
    twins = openvino.Model(model.get_results()[:1], [*model.get_parameters(), switches], "twins")
    request = CORE.compile_model(twins, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()

    def noise(switched: np.ndarray, feed: dict[str, np.ndarray]) -> np.ndarray:
        request.infer({**feed, "switches": switched})
        return request.get_output_tensor(0).data.copy()

    exact = [noise(np.zeros(len(layers), np.float32), feed) for feed in feeds]
    errors = []
    for switched in np.eye(len(layers), dtype=np.float32):
        actual = [noise(switched, feed) for feed in feeds]
        errors.append(max(map(relative_error, actual, exact)))
        bar.update()
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


@cache
def greatest_weight() -> int:
    """127, or 64 on an x86-64 CPU without VNNI.

    Such a CPU adds pairs of 8-bit products in 16 bits, which overflow with larger weights. Graphs with the smaller
    range are right on every CPU.
    """
    flags = cpu_entry("flags").split()  # which x86 alone has
    return 127 if not flags or {"avx512_vnni", "avx_vnni"} & set(flags) else 64


def int8_weight(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Values up to ±`greatest_weight` and scales, one an index of `axis`, broadcast to the weight."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True), 1e-12) / np.float32(greatest_weight())
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)
