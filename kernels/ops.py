"""The operators as PyTorch sees them, and the one place that chooses what computes them.

CUDA tensors go to the pack compiled ahead of time where it was built, and what it has not to Triton where
that is installed; CPU tensors go to the native library; all others, and what a kernel does not take, to the
reference. `MRC_REFERENCE_KERNELS=1` or `reference_kernels()` sends everything to the reference.

The operators are `torch.ops.mrc.reward_block` and `torch.ops.mrc.group_norm_silu`, with shapes for
tracing, autocast, and gradients through the reference, and `torch.ops.mrc.guided_step`, which works in
place and has none. Arrays need no PyTorch for that one: `kernels.guided_step`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.utils._pytree import tree_flatten, tree_unflatten

from .feature_maps import TYPES, layout
from .group_norm_silu import reference as group_norm_reference
from .guided_step import guided_step as guided_native
from .guided_step.reference import guided_step as guided_reference
from .pack import NotInPack, ready
from .reward_block import reference as reward_reference

SWITCH = "MRC_REFERENCE_KERNELS"
forced = os.environ.get(SWITCH, "") not in ("", "0")


@contextmanager
def reference_kernels() -> Iterator[None]:
    """Everything inside is computed by the references."""
    global forced
    before, forced = forced, True
    try:
        yield
    finally:
        forced = before


def chosen(hidden: Tensor, fits: bool = True, packed: bool = True) -> str:
    """Which module of an operator's folder computes on `hidden`.

    `fits` says that its kernels take the shape, `packed` that the pack may have it.
    """
    if forced or not fits or hidden.dtype not in TYPES or not hidden.numel():
        return "reference"
    if hidden.device.type == "cpu":
        return "native"
    if hidden.device.type == "cuda" and packed and ready():
        return "pack"
    return "triton_kernel" if hidden.device.type == "cuda" and find_spec("triton") else "reference"


def compute(name: str, where: str, *arguments: Any) -> Any:
    return getattr(import_module(f".{name}.{where}", __package__), name)(*arguments)


def mapped(name: str, fits: bool, hidden: Tensor, *rest: Any) -> Tensor:
    """A feature map from a feature map, in its layout."""
    try:
        output = compute(name, chosen(hidden, fits), hidden, *rest)
    except NotInPack:
        output = compute(name, chosen(hidden, fits, packed=False), hidden, *rest)
    return output.contiguous(memory_format=layout(hidden))


@torch.library.custom_op("mrc::reward_block", mutates_args=())
def reward_block(
    hidden: Tensor, gate: Tensor, gate_bias: Tensor, base: Tensor, update: Tensor, weights: list[Tensor], groups: int
) -> Tensor:
    """See `reward_block.reference`."""
    fits = hidden.shape[1] % 32 == 0
    return mapped("reward_block", fits, hidden, gate, gate_bias, base, update, weights, groups)


@torch.library.custom_op("mrc::group_norm_silu", mutates_args=())
def group_norm_silu(
    hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None, silu: bool
) -> Tensor:
    """See `group_norm_silu.reference`."""
    return mapped("group_norm_silu", True, hidden, weight, bias, groups, eps, offset, silu)


@torch.library.custom_op("mrc::guided_step", mutates_args=("latents", "data", "sample"))
def guided_step(
    noise: Tensor, guidance: Tensor, latents: Tensor, data: Tensor, fresh: Tensor | None, coefficients: Tensor,
    data_coefficients: Tensor, input_scale: Tensor, item: Tensor, sample: Tensor,
) -> None:  # fmt: skip
    """`kernels.guided_step` on tensors of one device, in place; `input_scale` has one value.

    Off the GPU all but `item` is contiguous float32.
    """
    before = (noise, guidance, latents, data, fresh, coefficients, data_coefficients)
    where = chosen(noise)
    if where == "pack":
        try:
            return compute("guided_step", where, *before, input_scale, item, sample)
        except NotInPack:
            where = chosen(noise, packed=False)
    if where == "triton_kernel":
        return compute("guided_step", where, *before, input_scale, item, sample)
    arrays: list[Any] = [None if tensor is None else tensor.numpy(force=True) for tensor in before]
    arrays += [float(input_scale), item.numpy(force=True), sample.numpy(force=True)]
    if where == "native":
        return guided_native(*arrays)
    for tensor, array in zip((latents, data, sample), guided_reference(*arrays), strict=True):
        tensor.copy_(torch.from_numpy(array))


@guided_step.register_fake
def _(*arguments: Any) -> None:
    return None


def register(operator: CustomOpDef, reference: Callable[..., Tensor]) -> None:
    """Shapes for tracing, gradients through the reference, and autocast: the feature map takes autocast's type."""

    def shape(hidden: Tensor, *rest: Any) -> Tensor:
        return torch.empty_like(hidden, memory_format=layout(hidden))

    def keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
        leaves, ctx.form = tree_flatten(inputs)
        ctx.tensors = [isinstance(leaf, Tensor) for leaf in leaves]
        ctx.others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        ctx.save_for_backward(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))

    def backward(ctx: Any, gradient: Tensor) -> tuple:
        saved, others = iter(ctx.saved_tensors), iter(ctx.others)
        leaves = [next(saved).detach() if tensor else next(others) for tensor in ctx.tensors]
        wanted = [leaf.requires_grad_() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        with torch.enable_grad():
            result = reference(*tree_unflatten(leaves, ctx.form))
        found = iter(torch.autograd.grad(result, wanted, gradient.to(result.dtype)))
        gradients = [next(found) if isinstance(leaf, Tensor) and leaf.requires_grad else None for leaf in leaves]
        return tuple(tree_unflatten(gradients, ctx.form))

    operator.register_fake(shape)
    operator.register_autograd(backward, setup_context=keep)
    for device in ("cpu", "cuda"):

        def cast(hidden: Tensor, *rest: Any, device: str = device) -> Tensor:
            with torch.amp.autocast(device, enabled=False):
                return operator(hidden.to(torch.get_autocast_dtype(device)), *rest)

        AUTOCAST.impl(operator._name, cast, f"Autocast{device.upper()}")


AUTOCAST = torch.library.Library("mrc", "FRAGMENT")
register(reward_block, reward_reference.reward_block)
register(group_norm_silu, group_norm_reference.group_norm_silu)
