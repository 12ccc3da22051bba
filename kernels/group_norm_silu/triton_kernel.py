"""`group_norm_silu` on a GPU.

Small maps: one program a group reads its positions three times, the last two from the cache. Large maps with channels
last: three kernels. The first two find scale and shift of every channel, the third applies them; their programs are
many, and each reads whole rows of channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..feature_maps import layout
from . import LARGE

BLOCK = 4096  # values that a program loads at once
TILE = {"POSITIONS": 64, "CHANNELS": 64}  # of the values that one of their programs loads at once
CHUNKS = 64  # a map's positions are at most in so many parts


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


@triton.jit
def partial_moments_kernel(
    hidden, means, squares, positions, channels, chunk, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Mean, and sum of squared differences from it, of each channel over `chunk` positions: `[N, chunks, C]`."""
    item, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    mean = tl.zeros([CHANNELS], tl.float32)
    square = tl.zeros([CHANNELS], tl.float32)
    begin = part * chunk
    end = tl.minimum(begin + chunk, positions)
    for start in range(begin, end, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        there = (position[:, None] < end) & inside[None, :]
        at = (item * positions + position[:, None]) * channels + channel[None, :]
        value = tl.load(hidden + at, mask=there, other=0.0).to(tl.float32)
        seen = start - begin
        count = tl.minimum(POSITIONS, end - start)
        new = tl.sum(value, 0) / count
        distance = tl.where(there, value - new[None, :], 0.0)
        delta = new - mean
        square += tl.sum(distance * distance, 0) + delta * delta * (seen * count / (seen + count))
        mean += delta * (count / (seen + count))
    at = (item * tl.num_programs(1) + part) * channels + channel
    tl.store(means + at, mean, mask=inside)
    tl.store(squares + at, square, mask=inside)


@triton.jit
def channel_scale_kernel(
    means, squares, weight, bias, offset, scale, shift, positions, channels, groups, chunk, parts, eps,
    HAS_OFFSET: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """From the moments of a group's channels and parts: `scale` and `shift` `[N, C]` that norm a channel."""
    item, _, channel, inside = own_group(positions, channels, groups, WIDTH)
    added = tl.zeros([WIDTH], tl.float32)
    if HAS_OFFSET:
        added += tl.load(offset + item * channels + channel, mask=inside, other=0.0).to(tl.float32)
    part = tl.arange(0, PARTS)
    there = (part[:, None] < parts) & inside[None, :]
    at = (item.to(tl.int64) * parts + part[:, None]) * channels + channel[None, :]
    count = tl.where(there, tl.minimum(chunk, positions - part * chunk)[:, None], 0).to(tl.float32)
    part_mean = tl.load(means + at, mask=there, other=0.0) + added[None, :]
    total = tl.sum(count)
    mean = tl.sum(part_mean * count) / total
    distance = part_mean - mean
    square = tl.load(squares + at, mask=there, other=0.0) + count * distance * distance
    variance = tl.sum(square) / total
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    tl.store(scale + item * channels + channel, factor, mask=inside)
    start = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(shift + item * channels + channel, start + (added - mean) * factor, mask=inside)


@triton.jit
def apply_kernel(
    hidden, scale, shift, output, positions, channels, SILU: tl.constexpr, POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    item = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    factor = tl.load(scale + item * channels + channel, mask=inside, other=0.0)
    start = tl.load(shift + item * channels + channel, mask=inside, other=0.0)
    there = (position[:, None] < positions) & inside[None, :]
    at = (item * positions + position[:, None]) * channels + channel[None, :]
    value = tl.load(hidden + at, mask=there, other=0.0).to(tl.float32) * factor[None, :] + start[None, :]
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
    if height * width >= LARGE and memory_format is torch.channels_last:
        norm_large(hidden, weight.contiguous(), bias.contiguous(), groups, eps, offset, silu, output)
        return output
    lanes = triton.next_power_of_2(channels // groups)
    group_norm_silu_kernel[(count * groups,)](
        hidden, weight.contiguous(), bias.contiguous(), weight if offset is None else offset.contiguous(), output,
        height * width, channels, groups, hidden.stride(1), hidden.stride(3), eps,
        HAS_OFFSET=offset is not None, SILU=silu, POSITIONS=max(1, BLOCK // lanes), WIDTH=lanes, num_warps=8,
    )  # fmt: skip
    return output


def norm_large(
    hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, offset: Tensor | None, silu: bool,
    output: Tensor,
) -> None:  # fmt: skip
    """Write the norm of maps with channels last to `output`."""
    count, channels, height, width = hidden.shape
    positions, blocks = height * width, triton.cdiv(channels, TILE["CHANNELS"])
    tiles = triton.cdiv(positions, TILE["POSITIONS"])
    chunk = triton.cdiv(tiles, CHUNKS) * TILE["POSITIONS"]
    parts = triton.cdiv(positions, chunk)
    means, squares = hidden.new_empty((2, count, parts, channels), dtype=torch.float32)
    scale, shift = hidden.new_empty((2, count, channels), dtype=torch.float32)
    partial_moments_kernel[(count, parts, blocks)](hidden, means, squares, positions, channels, chunk, **TILE)
    channel_scale_kernel[(count * groups,)](
        means, squares, weight, bias, weight if offset is None else offset.contiguous(), scale, shift, positions,
        channels, groups, chunk, parts, eps, HAS_OFFSET=offset is not None, PARTS=triton.next_power_of_2(parts),
        WIDTH=triton.next_power_of_2(channels // groups),
    )  # fmt: skip
    apply_kernel[(tiles, count, blocks)](hidden, scale, shift, output, positions, channels, SILU=silu, **TILE)
