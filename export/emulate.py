"""Number formats emulated on the CPU in float32, in chosen layers of a graph.

A layer is an operator with parameters and those without that follow it (activations, sums, attention), up to the next
one with parameters. Its name is that of the module with the parameters.

float16 and bfloat16: every operator of a layer takes and gives rounded values, weights too, and is exact inside, as
kernels are that sum up in float32. int8 and fp8 (e4m3): convolutions and products with constant weights take rounded
activations, one scale a tensor, and rounded weights, one scale an output channel. They give float32, and so does all
else in the layer.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..model.layers import Upsampler

START = "inputs"  # the layer of what comes before the first parameter
PRODUCTS = (F.conv2d, F.linear)
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
FORMATS = (*HALVES, "int8", "fp8")
FP8 = torch.float8_e4m3fn


@dataclass
class Layer:
    """What a layer met.

    Attributes:
        peak: greatest magnitude that enters or leaves one of its operators, weights included.
        low, high: range of the activations that enter its convolutions and products with constant weights.
    """

    name: str
    peak: float = 0.0
    low: float = 0.0
    high: float = 0.0
    products: bool = False  # whether it has such convolutions or products


class Layered(TorchFunctionMode):
    """Knows, while a graph runs under it, which layer an operator belongs to."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.owners = owners(module)
        self.layer = START

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: dict | None = None) -> Any:
        if func.__name__ == "__get__":  # a property, such as the type of a weight
            return func(*args, **kwargs or {})
        for tensor in tensors((args, kwargs)):
            if owner := self.owners.get(storage(tensor)):
                self.layer = owner
                break
        return self.call(func, args, kwargs or {})

    def call(self, func: Callable, args: Any, kwargs: dict) -> Any:
        """Run one operator, which belongs to `self.layer`."""
        return func(*args, **kwargs)


def owners(module: nn.Module) -> dict[int, str]:
    """The module that a parameter belongs to, by the parameter's storage, which its slices share."""
    names = {storage(value): name.rpartition(".")[0] for name, value in module.named_parameters()}
    for part in module.modules():
        if isinstance(part, Upsampler):  # whose weights are made from a convolution's
            names |= dict.fromkeys(map(storage, part.weights), names[storage(part.bias)])
    return names


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors(value: Any) -> Iterator[Tensor]:
    """All floating-point tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure with every floating-point tensor changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: mapped(change, item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(change, item) for item in value)
    return value


class Observed(Layered):
    """Notes what each layer meets, in the order of the graph."""

    def __init__(self, module: nn.Module, layers: dict[str, Layer]) -> None:
        super().__init__(module)
        self.layers = layers

    def call(self, func: Callable, args: Any, kwargs: dict) -> Any:
        taken = list(tensors((args, kwargs)))
        if not taken:  # computes with integers
            return func(*args, **kwargs)
        layer = self.layers.setdefault(self.layer, Layer(self.layer))
        for tensor in taken:
            self.note(tensor, layer)
        if func in PRODUCTS:
            low, high = (float(bound) for bound in args[0].aminmax())
            layer.low, layer.high, layer.products = min(layer.low, low), max(layer.high, high), True
        result = func(*args, **kwargs)
        for tensor in tensors(result):
            tensor.made_by = layer  # type: ignore[attr-defined]
        return result

    def note(self, tensor: Tensor, layer: Layer) -> None:
        """Note a tensor in the layer that takes it and in the one that made it: what nobody takes is not computed."""
        if tensor.numel():
            peak = float(tensor.abs().max())
            for met in (layer, getattr(tensor, "made_by", layer)):
                met.peak = max(met.peak, peak)


class Rounded(Layered):
    """Computes chosen layers in float16 or bfloat16."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, chosen: Collection[str]) -> None:
        super().__init__(module)
        self.dtype, self.chosen = dtype, chosen

    def call(self, func: Callable, args: Any, kwargs: dict) -> Any:
        if self.layer not in self.chosen:
            return func(*args, **kwargs)
        return mapped(self.round, func(*mapped(self.round, args), **mapped(self.round, kwargs)))

    def round(self, tensor: Tensor) -> Tensor:
        if getattr(tensor, "rounded", False):
            return tensor
        rounded = tensor.to(self.dtype).to(tensor.dtype)
        rounded.rounded = True  # type: ignore[attr-defined]  # once is enough
        return rounded


class Quantized(Layered):
    """Computes the convolutions and products of chosen layers in int8 or fp8."""

    def __init__(self, module: nn.Module, number: str, chosen: Collection[str], layers: dict[str, Layer]) -> None:
        super().__init__(module)
        self.number, self.chosen, self.layers = number, chosen, layers

    def call(self, func: Callable, args: Any, kwargs: dict) -> Any:
        if func in PRODUCTS and self.layer in self.chosen:
            x, weight, *others = args
            layer = self.layers[self.layer]
            peak = torch.tensor(max(-layer.low, layer.high))
            peaks = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
            args = (scaled(x, peak, self.number), scaled(weight, peaks, self.number), *others)
        return func(*args, **kwargs)


def emulated(module: nn.Module, number: str, chosen: Collection[str], layers: dict[str, Layer]) -> Layered:
    """The mode under which `chosen` layers compute in a format of FORMATS; `layers` as `Observed` met them."""
    if number in HALVES:
        return Rounded(module, HALVES[number], chosen)
    return Quantized(module, number, chosen, layers)


def scaled(tensor: Tensor, peak: Tensor, number: str) -> Tensor:
    """Rounded to int8 or fp8 after scaling so that `peak` is the greatest number of the format; greater is cut off."""
    greatest = 127.0 if number == "int8" else torch.finfo(FP8).max
    scale = peak.clamp(min=1e-12) / greatest
    values = (tensor / scale).clamp(-greatest, greatest)
    return (values.round() if number == "int8" else values.to(FP8).to(tensor.dtype)) * scale


class Wider(Layered):
    """Computes chosen layers in float32, and all others in half precision, which their parameters have."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, chosen: Collection[str]) -> None:
        super().__init__(module)
        self.dtype, self.chosen = dtype, chosen

    def call(self, func: Callable, args: Any, kwargs: dict) -> Any:
        types = {tensor.dtype for tensor in tensors((args, kwargs))}
        dtype = torch.float32 if self.layer in self.chosen else self.dtype
        if types == {dtype} or (len(types) == 1 and self.layer not in self.chosen):
            return func(*args, **kwargs)
        return func(*mapped(lambda x: x.to(dtype), args), **mapped(lambda x: x.to(dtype), kwargs))
