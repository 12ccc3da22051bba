"""`reward_block` on the CPU (csrc/reward_block.cpp)."""

import ctypes

import torch
from torch import Tensor

from ..feature_maps import feature_maps, layout, wide
from ..native import check, library
from .reference import GROUP_NORM_EPS, RewardWeights


def reward_block(
    hidden: Tensor, gate: Tensor, gate_bias: Tensor, base: Tensor, update: Tensor, weights: list[Tensor], groups: int
) -> Tensor:
    """As the reference, in float32 inside whatever the type of `hidden`; C a multiple of 32."""
    hidden = hidden.contiguous(memory_format=layout(hidden))
    output = torch.empty_like(hidden)
    norm, norm_bias, *rest = (wide(weight) for weight in RewardWeights(*weights))
    maps = feature_maps(hidden, output, groups, GROUP_NORM_EPS, norm, norm_bias)
    folded = [wide(tensor) for tensor in (gate, gate_bias, base, update)]
    pointers = (ctypes.c_void_p * len(rest))(*(weight.data_ptr() for weight in rest))
    status = library().mrc_reward_block(
        ctypes.byref(maps), ctypes.byref(pointers), *(ctypes.c_void_p(tensor.data_ptr()) for tensor in folded)
    )
    check(status, "mrc_reward_block")
    return output
