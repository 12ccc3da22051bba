"""`reward_block` on the CPU (csrc/reward_block.cpp)."""

import ctypes

import torch
from torch import Tensor

from ..feature_maps import as_float32, feature_maps, layout, pointer
from ..native import check, library
from .reference import GROUP_NORM_EPS, RewardWeights


def reward_block(
    hidden: Tensor, gate: Tensor, gate_bias: Tensor, base: Tensor, update: Tensor, weights: list[Tensor], groups: int
) -> Tensor:
    """As the reference; computed in float32 whatever the dtype of `hidden`. C is a multiple of 32."""
    hidden = hidden.contiguous(memory_format=layout(hidden))
    output = torch.empty_like(hidden)
    norm, norm_bias, *rest = (as_float32(weight) for weight in RewardWeights(*weights))
    maps = feature_maps(hidden, output, groups, GROUP_NORM_EPS, norm, norm_bias)
    folded = [as_float32(tensor) for tensor in (gate, gate_bias, base, update)]
    pointers = (ctypes.c_void_p * len(rest))(*(weight.data_ptr() for weight in rest))
    status = library().mrc_reward_block(ctypes.byref(maps), ctypes.byref(pointers), *map(pointer, folded))
    check(status, "mrc_reward_block")
    return output
