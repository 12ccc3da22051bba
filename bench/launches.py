"""Launches of a step of the released U-Net on a GPU, counted without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mrc_edit.core.schema import JsonObject
from mrc_edit.kernels.group_norm_silu import LARGE
from mrc_edit.kernels.reward_block import WIDEST
from mrc_edit.kernels.reward_block.reference import reward_block
from mrc_edit.model.layers import cross_attentions, merge_projections, resnets
from mrc_edit.model.rewards import HEADS
from mrc_edit.model.step import UNetStep
from mrc_edit.model.unet import MRCUNet

SD15: JsonObject = {"sample_size": 64, "in_channels": 8, "cross_attention_dim": 768}
BRANCHES = 3
FREE = ("aten::detach", "aten::_to_copy.meta", "aten::_unsafe_view")


class Launches(TorchDispatchMode):
    """Counts the operators that would each be a launch on a GPU: all but views and allocations.

    A convolution's bias is counted with it, though cuDNN adds it by a launch of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        free = func.is_view or "empty" in func.name() or func.name() in FREE
        if func.name() == "mrc::reward_block" and args[0].shape[1] > WIDEST:
            with self:  # a GPU computes the reference
                return reward_block(*args)
        large = func.name() == "mrc::group_norm_silu" and args[0].shape[2:].numel() >= LARGE
        # the reward block has one for the statistics and one for itself
        self.count += 3 if large else 2 if func.name() == "mrc::reward_block" else not free
        return func(*args, **(kwargs or {}))


@contextmanager
def one_attention() -> Iterator[None]:
    """Attention is one operator inside, as it is one launch on a GPU; elsewhere PyTorch writes it out."""
    with patch.object(F, "scaled_dot_product_attention", lambda query, key, value, **options: torch.relu(query)):
        yield


@one_attention()
@torch.no_grad()
def launches(side: int = 64, injection: str = "time") -> dict[str, int]:
    """Launches of one step of the released U-Net with three branches, as a GPU runs it in bfloat16, counted without
    computing it.

    Args:
        injection: where rewards enter it, `reward_injection` of `MRCUNet`.
    """
    dtype = torch.bfloat16
    with torch.device("meta"):
        unet = MRCUNet(reward_injection=injection, **SD15).eval()
        nn.Module.to(unet, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        three = torch.empty(BRANCHES, 8, side, side).contiguous(memory_format=torch.channels_last)
        states, scores, text = torch.empty(BRANCHES, 77, 768), torch.empty(BRANCHES, 3), torch.empty(BRANCHES, 768)
        layers = unet.reward_layers()
        width = sum(layer.channels for layer in layers)
        shapes = ((HEADS, width), (HEADS, len(layers)), (width, 1), (width, HEADS))
        folded = [torch.empty(2, *shape, dtype=dtype) for shape in shapes]
        time_bias = torch.empty(2, sum(resnet.out_channels for resnet in resnets(unet)), dtype=dtype)
        keys = sum(2 * attention.inner_dim for attention in cross_attentions(unet))
        text_kv = torch.empty(BRANCHES, 77, keys, dtype=dtype)
        branch, guidance = torch.empty(BRANCHES, dtype=torch.int64), torch.empty(1, BRANCHES)
        with Launches() as eager:
            unet(three.to(dtype), torch.empty(()), states.to(dtype), scores, text.to(dtype))
        counts = {"eager": eager.count}
        merge_projections(unet)
        for name, fused in (("step graph", False), ("step graph with kernels", True)):
            with Launches() as ours:
                UNetStep(unet, fused)(three[:2], branch, guidance, time_bias, text_kv, *folded)
            counts[name] = ours.count
    return counts
