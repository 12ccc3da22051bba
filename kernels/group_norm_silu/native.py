"""`group_norm_silu` on the CPU (csrc/group_norm_silu.cpp)."""

import ctypes

import torch
from torch import Tensor

from ..feature_maps import as_float32, feature_maps, layout, pointer
from ..native import check, library


def group_norm_silu(
    hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None, silu: bool
) -> Tensor:
    """As the reference; computed in float32 whatever the dtype of `hidden`."""
    hidden = hidden.contiguous(memory_format=layout(hidden))
    output = torch.empty_like(hidden)
    weight, bias = as_float32(weight), as_float32(bias)
    offset = None if offset is None else as_float32(offset)
    maps = feature_maps(hidden, output, groups, eps, weight, bias)
    check(library().mrc_group_norm_silu(ctypes.byref(maps), pointer(offset), int(silu)), "mrc_group_norm_silu")
    return output
