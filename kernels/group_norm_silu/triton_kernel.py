"""`group_norm_silu` on a GPU: one program a group reads its positions three times, the last two from the cache."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..feature_maps import layout

BLOCK = 4096  # values that a program loads at once


@triton.jit
def own_group(positions, channels, groups, WIDTH: tl.constexpr):
    """This program's feature map, the map's first value, the group's channels `[WIDTH]` and a mask of the real ones."""
    item = tl.program_id(0) // groups
    width = channels // groups
    lane = tl.arange(0, WIDTH)
    channel = tl.program_id(0) % groups * width + lane
    return item, item.to(tl.int64) * channels * positions, channel, lane < width


@triton.jit
def moments(
    hidden, offset, first, channel, inside, positions, stride_channel, stride_position, HAS_OFFSET: tl.constexpr,
    POSITIONS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean and variance of one group; `channel` `[WIDTH]` are its channels, `inside` is the mask of the real ones."""
    added = tl.zeros([WIDTH], tl.float32)
    if HAS_OFFSET:
        added += tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(0, positions, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        there = inside[None, :] & (position[:, None] < positions)
        at = first + position[:, None] * stride_position + channel[None, :] * stride_channel
        value = tl.load(hidden + at, mask=there, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(there, value + added[None, :], 0.0), 0)
    count = tl.sum(inside.to(tl.float32), 0) * positions
    mean = tl.sum(total, 0) / count
    squares = tl.zeros([WIDTH], tl.float32)
    for start in range(0, positions, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        there = inside[None, :] & (position[:, None] < positions)
        at = first + position[:, None] * stride_position + channel[None, :] * stride_channel
        value = tl.load(hidden + at, mask=there, other=0.0).to(tl.float32) + added[None, :] - mean
        squares += tl.sum(tl.where(there, value * value, 0.0), 0)
    return added, mean, tl.sum(squares, 0) / count


@triton.jit
def group_norm_silu_kernel(
    hidden, weight, bias, offset, output, positions, channels, groups, stride_channel, stride_position, eps,
    HAS_OFFSET: tl.constexpr, SILU: tl.constexpr, POSITIONS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    item, first, channel, inside = own_group(positions, channels, groups, WIDTH)
    added, mean, variance = moments(
        hidden, offset + item * channels, first, channel, inside, positions, stride_channel, stride_position,
        HAS_OFFSET, POSITIONS, WIDTH,
    )  # fmt: skip
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) + (added - mean) * scale
    for start in range(0, positions, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        there = inside[None, :] & (position[:, None] < positions)
        at = first + position[:, None] * stride_position + channel[None, :] * stride_channel
        value = tl.load(hidden + at, mask=there, other=0.0).to(tl.float32)
        value = value * scale[None, :] + shift[None, :]
        if SILU:
            value = value * tl.sigmoid(value)
        tl.store(output + at, value.to(output.dtype.element_ty), mask=there)


def group_norm_silu(
    hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None, silu: bool
) -> Tensor:
    """As the reference; computed in float32."""
    memory_format = layout(hidden)
    hidden = hidden.contiguous(memory_format=memory_format)
    output = torch.empty_like(hidden)
    count, channels, height, width = hidden.shape
    lanes = triton.next_power_of_2(channels // groups)
    group_norm_silu_kernel[(count * groups,)](
        hidden, weight.contiguous(), bias.contiguous(), weight if offset is None else offset.contiguous(), output,
        height * width, channels, groups, hidden.stride(1), hidden.stride(3), eps,
        HAS_OFFSET=offset is not None, SILU=silu, POSITIONS=max(1, BLOCK // lanes), WIDTH=lanes, num_warps=8,
    )  # fmt: skip
    return output
