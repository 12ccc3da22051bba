"""Layers of the U-Net and the VAE as the graphs compute them: the same weights as in diffusers, called for speed.

Shapes: N samples, C channels, h×w positions, L text length.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ..kernels import ops
from ..kernels.feature_maps import layout
from .unet import MRCUNet


class Upsampler(nn.Module):
    """Every pixel twice in both directions, then a 3×3 convolution: `[N, C, h, w]` → `[N, C', 2h, 2w]`.

    An output pixel depends on 2×2 input pixels. Which of the nine weights fall on the same input pixel depends on
    whether its row and column are even. So this is four 2×2 convolutions of the small image, with the weights summed
    beforehand: 4/9 of the work.
    """

    def __init__(self, block: Upsample2D) -> None:
        super().__init__()
        weight, self.bias = block.conv.weight.detach(), block.conv.bias
        same = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).to(weight.device)  # [parity, 2, 3]
        weights = torch.einsum("yak,xbl,oikl->yxoiab", same, same, weight.float()).to(weight.dtype).flatten(0, 1)
        self.weights = nn.ParameterList(weight.contiguous(memory_format=torch.channels_last) for weight in weights)

    def forward(self, hidden: Tensor) -> Tensor:
        corners = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row, column
        padded = (F.pad(hidden, (1 - x, x, 1 - y, y)) for y, x in corners)
        parts = [F.conv2d(part, weight, self.bias) for part, weight in zip(padded, self.weights, strict=True)]
        return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), 2)


def upsamplers(blocks: Iterable[UpDecoderBlock2D]) -> nn.ModuleList:
    """Those of the blocks that have one, in order. On a GPU the plain ones, which are faster there (docs/gpu.md)."""
    plain = [block.upsamplers[0] for block in blocks if block.upsamplers]
    return nn.ModuleList(block if block.conv.weight.is_cuda else Upsampler(block) for block in plain)


def resnets(unet: MRCUNet) -> list[ResnetBlock2D]:
    """All ResNets in the order of the forward pass."""
    return [resnet for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) for resnet in block.resnets]


def cross_attentions(unet: MRCUNet) -> list[Attention]:
    """All cross-attentions in the order of the forward pass."""
    return [layer.attn2 for layer in transformer_layers(unet)]


def transformer_layers(unet: MRCUNet) -> list[BasicTransformerBlock]:
    """All layers of all transformers in the order of the forward pass."""
    blocks = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    transformers = [transformer for block in blocks for transformer in getattr(block, "attentions", ())]
    return [layer for transformer in transformers for layer in transformer.transformer_blocks]


def norm_silu(norm: nn.GroupNorm, hidden: Tensor, time_bias: Tensor | None = None) -> Tensor:
    """SiLU of the norm of `hidden` `[N, C, h, w]` plus `time_bias` `[N, C, 1, 1]`."""
    return F.silu(norm(hidden if time_bias is None else hidden + time_bias))


def fused_norm_silu(norm: nn.GroupNorm, hidden: Tensor, time_bias: Tensor | None = None) -> Tensor:
    """`norm_silu` by one kernel."""
    offset = None if time_bias is None else time_bias.flatten(1)
    return ops.group_norm_silu(hidden, norm.weight, norm.bias, norm.num_groups, norm.eps, offset, True)


def fused_norm(norm: nn.GroupNorm, hidden: Tensor) -> Tensor:
    """A group norm by one kernel."""
    return ops.group_norm_silu(hidden, norm.weight, norm.bias, norm.num_groups, norm.eps, None, False)


def resnet(block: ResnetBlock2D, hidden: Tensor, time_bias: Tensor | None = None, fused: bool = False) -> Tensor:
    """`block` with its timestep projection `[N, C, 1, 1]` already computed, or without one."""
    activated = fused_norm_silu if fused else norm_silu
    inner = block.conv1(activated(block.norm1, hidden))
    inner = block.conv2(activated(block.norm2, inner, time_bias))
    total = (hidden if block.conv_shortcut is None else block.conv_shortcut(hidden)) + inner
    return total if block.output_scale_factor == 1 else total / block.output_scale_factor


def merge_projections(unet: MRCUNet) -> None:
    """Make one layer `to_qkv` of the query, key and value layers of each self-attention, which go."""
    for layer in transformer_layers(unet):
        attention = layer.attn1
        attention.fuse_projections()
        del attention.to_q, attention.to_k, attention.to_v


def transformer(
    block: Transformer2DModel, hidden: Tensor, keys_values: Iterator[Tensor], branch: Tensor | None = None,
    fused: bool = False,
) -> Tensor:  # fmt: skip
    """`block` with text keys and values already computed.

    With `branch`, the P inputs become N branches right before the first cross-attention.
    """
    height, width = hidden.shape[2:]
    residual = hidden
    x = fused_norm(block.norm, hidden) if fused else block.norm(hidden)
    x = block.proj_in(positions(x)) if block.use_linear_projection else positions(block.proj_in(x))
    for layer in block.transformer_blocks:
        x = x + attend(layer.attn1, *self_projections(layer.attn1, layer.norm1(x)))
        if branch is not None:
            x, residual, branch = x.index_select(0, branch), select(residual, branch), None
        x = x + attend(layer.attn2, layer.attn2.to_q(layer.norm2(x)), next(keys_values), next(keys_values))
        x = x + feed_forward(layer.ff, layer.norm3(x))
    if block.use_linear_projection:
        x = block.proj_out(x)
    x = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return residual + (x if block.use_linear_projection else block.proj_out(x))


def select(hidden: Tensor, rows: Tensor) -> Tensor:
    """Feature maps `[N, C, h, w]` of the rows, which keep their memory layout; `index_select` gives channels first."""
    return hidden[rows] if layout(hidden) is torch.channels_last else hidden.index_select(0, rows)


def positions(hidden: Tensor) -> Tensor:
    """`[N, C, h, w]` → `[N, h·w, C]`, in the order that costs nothing where channels are last in memory."""
    return hidden.permute(0, 2, 3, 1).flatten(1, 2)


def feed_forward(block: FeedForward, x: Tensor) -> Tensor:
    """`block`, a GEGLU, with value and gate as two products: halves of one would have to be copied out."""
    geglu, _, out = block.net
    weight, bias = geglu.proj.weight, geglu.proj.bias
    half = len(bias) // 2
    value, gate = F.linear(x, weight[:half], bias[:half]), F.linear(x, weight[half:], bias[half:])
    return out(value * F.gelu(gate))


def self_projections(attention: Attention, x: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value of positions `[N, HW, C]`."""
    if attention.fused_projections:
        return attention.to_qkv(x).chunk(3, dim=-1)
    return attention.to_q(x), attention.to_k(x), attention.to_v(x)


def attend(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention of queries `[N, HW, C']` to `key` and `value` `[N, L, C']` → `[N, HW, C]`."""
    query, key, value = (tensor.unflatten(2, (attention.heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value)
    return attention.to_out[0](mixed.transpose(1, 2).flatten(2))
