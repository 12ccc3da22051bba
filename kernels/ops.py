"""The operators as PyTorch sees them, and the one place that chooses what computes them.

CUDA tensors go to the pack if it was built, and to Triton where the pack has no kernel; CPU tensors go to the native
library if it was built. The reference computes everything else. `MRC_REFERENCE_KERNELS=1` or `reference_kernels()`
sends everything to the reference.

`torch.ops.mrc.reward_block` and `torch.ops.mrc.group_norm_silu` have shapes for tracing, autocast, and gradients
through the reference. `torch.ops.mrc.sampler_step` works in place and has no gradient.
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

from . import native, pack
from .feature_maps import FLOATS, layout
from .group_norm_silu import LARGE
from .group_norm_silu import reference as group_norm_reference
from .reward_block import WIDEST
from .reward_block import reference as reward_reference

SWITCH = "MRC_REFERENCE_KERNELS"
forced = os.environ.get(SWITCH, "") not in ("", "0")


@contextmanager
def reference_kernels() -> Iterator[None]:
    """The references compute every operator inside."""
    global forced
    before, forced = forced, True
    try:
        yield
    finally:
        forced = before


def chosen(tensor: Tensor, fits: bool = True, packed: bool = True) -> str:
    """Name of the module in an operator's folder that computes on `tensor`.

    `fits`: the kernels take these arguments. `packed`: the pack may compute; False after it declined.
    """
    if forced or not fits or tensor.dtype not in FLOATS or not tensor.numel():
        return "reference"
    if tensor.device.type == "cpu":
        return "native" if native.ready() else "reference"
    if tensor.device.type == "cuda" and packed and pack.ready():
        return "pack"
    return "triton_kernel" if tensor.device.type == "cuda" and find_spec("triton") else "reference"


def compute(name: str, fits: bool, tensor: Tensor, *rest: object, packed: bool = True) -> Any:
    """Call operator `name` in the module that is chosen for `tensor`, its first argument."""

    def call(module: str) -> Any:
        return getattr(import_module(f".{name}.{module}", __package__), name)(tensor, *rest)

    try:
        return call(chosen(tensor, fits, packed))
    except pack.NotInPack:
        return call(chosen(tensor, fits, packed=False))


def takes_rewards(hidden: Tensor) -> bool:
    """Whether the kernels of `reward_block` compute this feature map.

    Libraries are faster for wide maps, and on a GPU without tensor cores, which float32 has none of.
    """
    channels = hidden.shape[1]
    return channels % 32 == 0 and channels <= WIDEST and not (hidden.is_cuda and hidden.dtype == torch.float32)


@torch.library.custom_op("mrc::reward_block", mutates_args=())
def reward_block(
    hidden: Tensor, gate: Tensor, gate_bias: Tensor, base: Tensor, update: Tensor, weights: list[Tensor], groups: int
) -> Tensor:
    """See `reward_block.reference`; the output has the layout of `hidden`."""
    output = compute("reward_block", takes_rewards(hidden), hidden, gate, gate_bias, base, update, weights, groups)
    return output.contiguous(memory_format=layout(hidden))


@torch.library.custom_op("mrc::group_norm_silu", mutates_args=())
def group_norm_silu(
    hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None, silu: bool
) -> Tensor:
    """See `group_norm_silu.reference`; the output has the layout of `hidden`."""
    last = layout(hidden) is torch.channels_last
    packed = not (last and hidden.shape[2:].numel() >= LARGE and find_spec("triton"))  # the pack's kernel is for small
    output = compute("group_norm_silu", True, hidden, weight, bias, groups, eps, offset, silu, packed=packed)
    return output.contiguous(memory_format=layout(hidden))


@torch.library.custom_op("mrc::sampler_step", mutates_args=("latents", "denoised", "sample"))
def sampler_step(
    noise: Tensor, latents: Tensor, denoised: Tensor, fresh_noise: Tensor | None, coefficients: Tensor,
    denoised_coefficients: Tensor, input_scale: Tensor, item: Tensor, sample: Tensor,
) -> None:  # fmt: skip
    """See `sampler_step.reference`; latents, denoised, fresh noise and sample are contiguous."""
    fits = noise.device.type != "cpu"  # there the reference is as fast as a kernel
    compute(
        "sampler_step", fits, noise, latents, denoised, fresh_noise, coefficients, denoised_coefficients, input_scale,
        item, sample,
    )  # fmt: skip


@sampler_step.register_fake
def _(*arguments: object) -> None:
    return None


def register(operator: CustomOpDef, reference: Callable[..., Tensor]) -> None:
    """Shapes for tracing, gradients through the reference, and autocast, which casts the feature map."""

    def shape(hidden: Tensor, *rest: object) -> Tensor:
        return torch.empty_like(hidden, memory_format=layout(hidden))

    def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
        leaves, ctx.structure = tree_flatten(inputs)
        ctx.is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        ctx.others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        ctx.save_for_backward(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))

    def backward(ctx: Any, gradient: Tensor) -> tuple:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
        leaves = [next(tensors).detach() if is_tensor else next(others) for is_tensor in ctx.is_tensor]
        sources = [leaf.requires_grad_() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        with torch.enable_grad():
            output = reference(*tree_unflatten(leaves, ctx.structure))
        results = iter(torch.autograd.grad(output, sources, gradient.to(output.dtype)))
        gradients = [next(results) if isinstance(leaf, Tensor) and leaf.requires_grad else None for leaf in leaves]
        return tuple(tree_unflatten(gradients, ctx.structure))

    operator.register_fake(shape)
    operator.register_autograd(backward, setup_context=save)
    for device in ("cpu", "cuda"):

        def cast(hidden: Tensor, *rest: object, device: str = device) -> Tensor:
            with torch.amp.autocast(device, enabled=False):
                return operator(hidden.to(torch.get_autocast_dtype(device)), *rest)

        AUTOCAST.impl(operator._name, cast, f"Autocast{device.upper()}")


AUTOCAST = torch.library.Library("mrc", "FRAGMENT")
register(reward_block, reward_reference.reward_block)
register(group_norm_silu, group_norm_reference.group_norm_silu)
