"""`reward_block` on a GPU: one pass for the group norm's statistics, one fused kernel for all the rest.

A program of the fused kernel takes TILE positions through norm, four matrix products, attention and
two layer norms. Registers have no room for both the input and the output of a product: the output goes to
the tile's own place in `output` or in a scratch buffer, which stay in the caches. The C channels are split
into CHUNKS chunks of CHUNK, because Triton's blocks are powers of two and C (320 as released) is not.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..feature_maps import layout
from ..group_norm_silu.triton_kernel import BLOCK, moments, own_group
from .fold import HEADS
from .reference import GROUP_NORM_EPS, LAYER_NORM_EPS, RewardWeights

GATES = 16  # the heads, padded to the narrowest matrix instruction


@triton.jit
def statistics_kernel(
    hidden, weight, bias, scale, shift, positions, channels, groups, stride_channel, stride_position, eps,
    POSITIONS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The group norm as x · scale + shift, both `[P, C]` float32."""
    item, first, channel, inside = own_group(positions, channels, groups, WIDTH)
    _, mean, variance = moments(
        hidden, hidden, first, channel, inside, positions, stride_channel, stride_position, False, POSITIONS, WIDTH
    )
    by = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    plus = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) - mean * by
    tl.store(scale + item * channels + channel, by, mask=inside)
    tl.store(shift + item * channels + channel, plus, mask=inside)


@triton.jit
def product(x, y, total, WIDEN: tl.constexpr):
    """total + x · y. WIDEN is for Triton's interpreter alone, which multiplies the bits of bfloat16 as integers."""
    if WIDEN:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision="ieee")


@triton.jit
def linear(xs, matrix, bias, j, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, WIDEN: tl.constexpr):
    """Chunk `j` of a linear layer's output, float32 `[TILE, CHUNK]`; `xs` are the chunks of its input."""
    column = tl.arange(0, CHUNK)
    at = column[None, :] * CHANNELS + column[:, None]  # [CHUNK inputs, CHUNK outputs], stored by outputs
    matrix += j * CHUNK * CHANNELS
    total = tl.zeros([xs[0].shape[0], CHUNK], tl.float32)
    for k in tl.static_range(CHUNKS):
        total = product(xs[k], tl.load(matrix + k * CHUNK + at), total, WIDEN)
    return total + tl.load(bias + j * CHUNK + column).to(tl.float32)[None, :]


@triton.jit
def load_chunks(pointers, step, there, CHUNKS: tl.constexpr):
    """All chunks of a tile, `step` apart."""
    xs = ()
    for k in tl.static_range(CHUNKS):
        xs = xs + (tl.load(pointers + k * step, mask=there, other=0.0),)
    return xs


@triton.jit
def layer_norm(xs, weight, bias, eps, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """Over all chunks of every position, in float32 inside."""
    mean = tl.sum(xs[0].to(tl.float32), 1)
    for k in tl.static_range(1, CHUNKS):
        mean += tl.sum(xs[k].to(tl.float32), 1)
    mean = mean / CHANNELS
    variance = tl.zeros_like(mean)
    for k in tl.static_range(CHUNKS):
        difference = xs[k].to(tl.float32) - mean[:, None]
        variance += tl.sum(difference * difference, 1)
    factor = 1.0 / tl.sqrt(variance / CHANNELS + eps)
    column = tl.arange(0, CHUNK)
    normed = ()
    for k in tl.static_range(CHUNKS):
        by = tl.load(weight + k * CHUNK + column).to(tl.float32)
        plus = tl.load(bias + k * CHUNK + column).to(tl.float32)
        value = (xs[k].to(tl.float32) - mean[:, None]) * factor[:, None] * by[None, :] + plus[None, :]
        normed = normed + (value.to(xs[0].dtype),)
    return normed


@triton.jit
def attend(
    output, at, step, there, item, column, gate, gate_bias, base, update,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, HEADS: tl.constexpr, GATES: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Add the two-key attention, one gate a head, to the tile at `output + at` in place."""
    CHUNKS: tl.constexpr = CHANNELS // CHUNK
    dtype = output.dtype.element_ty
    ys = load_chunks(output + at, step, there, CHUNKS)
    head = tl.arange(0, GATES)
    real = head < HEADS
    gates = tl.zeros([TILE, GATES], tl.float32)
    for k in tl.static_range(CHUNKS):
        row = (item * HEADS + head)[None, :] * CHANNELS + (k * CHUNK + column)[:, None]
        gates = product(ys[k], tl.load(gate + row, mask=real[None, :], other=0.0), gates, WIDEN)
    open_gates = tl.sigmoid(gates + tl.load(gate_bias + item * HEADS + head, mask=real, other=0.0)[None, :]).to(dtype)
    tl.debug_barrier()
    for j in range(CHUNKS):
        channel = item * CHANNELS + j * CHUNK + column
        change = tl.load(update + channel[None, :] * HEADS + head[:, None], mask=real[:, None], other=0.0)
        y = tl.load(output + j * step + at, mask=there, other=0.0).to(tl.float32) + tl.load(base + channel)[None, :]
        y = product(open_gates, change, y, WIDEN)
        tl.debug_barrier()  # another thread may still read the place that this one writes
        tl.store(output + j * step + at, y.to(dtype), mask=there)
    tl.debug_barrier()


@triton.jit
def reward_block_kernel(
    hidden, output, scratch, scale, shift, gate, gate_bias, base, update,
    proj_in, proj_in_bias, norm1, norm1_bias, inner, inner_bias, outer, outer_bias, norm2, norm2_bias,
    proj_out, proj_out_bias,
    positions, stride_channel, stride_position, eps,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, HEADS: tl.constexpr, GATES: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    CHUNKS: tl.constexpr = CHANNELS // CHUNK
    item = tl.program_id(1)
    position = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, CHUNK)
    there = (position < positions)[:, None]
    dtype = hidden.dtype.element_ty
    at = item.to(tl.int64) * CHANNELS * positions + position[:, None] * stride_position
    at += column[None, :] * stride_channel
    step = CHUNK * stride_channel  # from a chunk to the next

    xs = ()
    for k in tl.static_range(CHUNKS):
        channel = item * CHANNELS + k * CHUNK + column
        value = tl.load(hidden + k * step + at, mask=there, other=0.0).to(tl.float32)
        xs = xs + ((value * tl.load(scale + channel)[None, :] + tl.load(shift + channel)[None, :]).to(dtype),)
    for j in range(CHUNKS):
        y = linear(xs, proj_in, proj_in_bias, j, CHANNELS, CHUNK, CHUNKS, WIDEN)
        tl.store(output + j * step + at, y.to(dtype), mask=there)
    tl.debug_barrier()  # other threads of the program read these stores

    attend(
        output, at, step, there, item, column, gate, gate_bias, base, update, CHANNELS, CHUNK, TILE, HEADS, GATES, WIDEN
    )
    ys = load_chunks(output + at, step, there, CHUNKS)
    ys = layer_norm(ys, norm1, norm1_bias, eps, CHANNELS, CHUNK, CHUNKS)
    tl.debug_barrier()
    for k in tl.static_range(CHUNKS):
        tl.store(output + k * step + at, ys[k], mask=there)
    for j in range(CHUNKS):
        h = linear(ys, inner, inner_bias, j, CHANNELS, CHUNK, CHUNKS, WIDEN)
        h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
        tl.store(scratch + j * step + at, h.to(dtype), mask=there)
    tl.debug_barrier()

    hs = load_chunks(scratch + at, step, there, CHUNKS)
    for j in range(CHUNKS):
        z = linear(hs, outer, outer_bias, j, CHANNELS, CHUNK, CHUNKS, WIDEN)
        z += tl.load(output + j * step + at, mask=there, other=0.0).to(tl.float32)
        tl.debug_barrier()
        tl.store(output + j * step + at, z.to(dtype), mask=there)
    tl.debug_barrier()

    zs = load_chunks(output + at, step, there, CHUNKS)
    zs = layer_norm(zs, norm2, norm2_bias, eps, CHANNELS, CHUNK, CHUNKS)
    tl.debug_barrier()
    for j in range(CHUNKS):
        result = linear(zs, proj_out, proj_out_bias, j, CHANNELS, CHUNK, CHUNKS, WIDEN)
        result += tl.load(hidden + j * step + at, mask=there, other=0.0).to(tl.float32)
        tl.store(output + j * step + at, result.to(dtype), mask=there)


def tiling(channels: int, dtype: torch.dtype, architecture: int) -> dict[str, int]:
    """Compile-time sizes for an SM version: the largest at which 320 channels spill no registers.

    Half-precision tiles have the matrix units' 64 rows, and wide chunks on SM 90 only; float32 uses no matrix units.
    """
    wide_chunks = channels % 64 == 0 and (architecture == 90 or dtype == torch.float32)
    tile = 16 if dtype == torch.float32 else 64
    return {"CHUNK": 64 if wide_chunks else 32, "TILE": tile, "num_warps": 8, "num_stages": 1}


def architecture_of(device: torch.device) -> int:
    """SM version of a GPU; 80 for the interpreter's CPU."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    return 10 * major + minor


def reward_block(
    hidden: Tensor, gate: Tensor, gate_bias: Tensor, base: Tensor, update: Tensor, weights: list[Tensor], groups: int
) -> Tensor:
    """As the reference; float32 sums, matrix products in the dtype of `hidden`. C is a multiple of 32."""
    hidden = hidden.contiguous(memory_format=layout(hidden))
    output, scratch = torch.empty_like(hidden), torch.empty_like(hidden)
    count, channels, height, width = hidden.shape
    positions, stride_channel, stride_position = height * width, hidden.stride(1), hidden.stride(3)
    w = RewardWeights(*(weight.to(hidden.dtype).contiguous() for weight in weights))
    scale, shift = torch.empty(2, count, channels, dtype=torch.float32, device=hidden.device)
    lanes = triton.next_power_of_2(channels // groups)
    statistics_kernel[(count * groups,)](
        hidden, w.norm, w.norm_bias, scale, shift, positions, channels, groups, stride_channel, stride_position,
        GROUP_NORM_EPS, POSITIONS=max(1, BLOCK // lanes), WIDTH=lanes, num_warps=8,
    )  # fmt: skip
    sizes = tiling(channels, hidden.dtype, architecture_of(hidden.device))
    widen = bool(triton.knobs.runtime.interpret) and hidden.dtype == torch.bfloat16
    reward_block_kernel[(triton.cdiv(positions, sizes["TILE"]), count)](
        hidden, output, scratch, scale, shift, gate.to(hidden.dtype).contiguous(), gate_bias.float().contiguous(),
        base.float().contiguous(), update.to(hidden.dtype).contiguous(), *w[2:],
        positions, stride_channel, stride_position, LAYER_NORM_EPS,
        CHANNELS=channels, HEADS=HEADS, GATES=GATES, WIDEN=widen, **sizes,
    )  # fmt: skip
    return output
