"""`reward_block` on a GPU, compiled ahead of time (csrc/mrc_cuda.h)."""

import ctypes

import torch
from torch import Tensor

from ..feature_maps import feature_maps, pointer
from ..pack import library, run
from .reference import GROUP_NORM_EPS, RewardWeights


def reward_block(
    hidden: Tensor, gate: Tensor, gate_bias: Tensor, base: Tensor, update: Tensor, weights: list[Tensor], groups: int
) -> Tensor:
    """As `triton_kernel`.

    Raises:
        NotInPack: the pack has no kernel for these arguments.
    """
    output, dtype = torch.empty_like(hidden), hidden.dtype
    norm, norm_bias, *rest = (weight.to(dtype).contiguous() for weight in RewardWeights(*weights))
    maps = feature_maps(hidden, output, groups, GROUP_NORM_EPS, norm, norm_bias)
    folded = [
        tensor.to(kind).contiguous()
        for tensor, kind in ((gate, dtype), (gate_bias, torch.float32), (base, torch.float32), (update, dtype))
    ]
    pointers = (ctypes.c_void_p * len(rest))(*(weight.data_ptr() for weight in rest))
    size = library().mrc_cuda_reward_block_workspace(ctypes.byref(maps))
    workspace = torch.empty(size, dtype=torch.uint8, device=hidden.device)
    run(
        "mrc_cuda_reward_block", hidden, ctypes.byref(maps), ctypes.byref(pointers), *map(pointer, [*folded, workspace])
    )
    return output
