"""`group_norm_silu` on a GPU, compiled ahead of time (csrc/mrc_cuda.h)."""

import ctypes

import torch
from torch import Tensor

from ..feature_maps import feature_maps, pointer
from ..pack import NotInPack, run


def group_norm_silu(
    hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None, silu: bool
) -> Tensor:
    """As `triton_kernel`.

    Raises:
        NotInPack: the pack has no kernel for these arguments.
    """
    if not silu or {tensor.dtype for tensor in (weight, bias, offset) if tensor is not None} != {hidden.dtype}:
        raise NotInPack("the pack has group norm with SiLU alone, and with all arguments of one dtype")
    output, weight, bias = torch.empty_like(hidden), weight.contiguous(), bias.contiguous()
    offset = None if offset is None else offset.contiguous()
    maps = feature_maps(hidden, output, groups, eps, weight, bias)
    run("mrc_cuda_group_norm_silu", hidden, ctypes.byref(maps), pointer(offset))
    return output
