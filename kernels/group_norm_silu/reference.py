"""The definition of `group_norm_silu`, as every ResNet of the U-Net begins."""

import torch.nn.functional as F
from torch import Tensor


def group_norm_silu(
    hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None, silu: bool
) -> Tensor:
    """Group norm of `hidden` `[N, C, h, w]` plus the timestep bias `offset` `[N, C]`, then SiLU."""
    if offset is not None:
        hidden = hidden + offset[..., None, None]
    normed = F.group_norm(hidden, groups, weight, bias, eps)
    return F.silu(normed) if silu else normed
