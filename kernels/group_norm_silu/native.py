"""`group_norm_silu` on the CPU (csrc/group_norm_silu.cpp)."""

import ctypes

import torch
from torch import Tensor

from ..feature_maps import feature_maps, layout, wide
from ..native import check, library


def group_norm_silu(
    hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None, silu: bool
) -> Tensor:
    """As the reference, in float32 inside whatever the type of `hidden`."""
    hidden = hidden.contiguous(memory_format=layout(hidden))
    output = torch.empty_like(hidden)
    weight, bias = wide(weight), wide(bias)
    maps = feature_maps(hidden, output, groups, eps, weight, bias)
    added = None if offset is None else wide(offset)
    pointer = None if added is None else ctypes.c_void_p(added.data_ptr())
    check(library().mrc_group_norm_silu(ctypes.byref(maps), pointer, int(silu)), "mrc_group_norm_silu")
    return output
