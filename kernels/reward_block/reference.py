"""The definition of `reward_block`, for anyone to check against docs/mathematics.md.

Shapes: P feature maps of C channels, h×w positions, 8 heads.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_NORM_EPS, LAYER_NORM_EPS = 1e-6, 1e-12  # as released


class RewardWeights(NamedTuple):
    """Norms `[C]`, matrices `[C, C]` from input to output as in `torch.nn.Linear`, biases `[C]`."""

    norm: Tensor
    norm_bias: Tensor
    proj_in: Tensor
    proj_in_bias: Tensor
    norm1: Tensor
    norm1_bias: Tensor
    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    proj_out: Tensor
    proj_out_bias: Tensor


def reward_block(
    hidden: Tensor, gate: Tensor, gate_bias: Tensor, base: Tensor, update: Tensor, weights: list[Tensor], groups: int
) -> Tensor:
    """Feature maps `[P, C, h, w]` with the reward added.

    Args:
        gate: `[P, 8, C]`, gate_bias: `[P, 8, 1]`, base: `[P, C, 1]`, update: `[P, C, 8]`, from `fold`.
        weights: the fields of `RewardWeights` in order.
        groups: of the group norm.
    """
    w = RewardWeights(*weights)
    channels = hidden.shape[1:2]
    x = F.group_norm(hidden, groups, w.norm, w.norm_bias, GROUP_NORM_EPS)
    x = F.linear(x.flatten(2).transpose(1, 2), w.proj_in, w.proj_in_bias)  # [P, h·w, C]
    attended = base + update @ torch.sigmoid(gate @ x.transpose(1, 2) + gate_bias)
    y = F.layer_norm(x + attended.transpose(1, 2), channels, w.norm1, w.norm1_bias, LAYER_NORM_EPS)
    inner = F.gelu(F.linear(y, w.inner, w.inner_bias))
    z = y + F.linear(inner, w.outer, w.outer_bias)
    z = F.layer_norm(z, channels, w.norm2, w.norm2_bias, LAYER_NORM_EPS)
    z = F.linear(z, w.proj_out, w.proj_out_bias)
    return hidden + z.transpose(1, 2).unflatten(2, hidden.shape[2:])
