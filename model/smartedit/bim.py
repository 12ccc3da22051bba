"""The bidirectional interaction module: queries and CLIP features read each other (SAM's two-way transformer).

Its tensors have their released names. M = width of the CLIP features (1024).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 8
TEXT_SHARE = 0.5  # of T in the text states


class Attention(nn.Module):
    """Attention of 8 heads inside `inner` channels, with projections from and to `width`."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayLayer(nn.Module):
    """Tokens attend to themselves and to the image, pass an MLP, and the image attends to them.

    The first layer's self-attention has neither a residual nor positions.
    """

    def __init__(self, width: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, width)
        self.cross_attn_token_to_image = Attention(width, width // 2)
        self.cross_attn_image_to_token = Attention(width, width // 2)
        self.mlp = Mlp(width, hidden)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(self, t: Tensor, m: Tensor, p: Tensor, pi: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `t` with positions `p`, both `[B, L, M]`; image `m` `[B, N, M]` with positions `pi` `[N, M]`."""
        t = self.norm1(self.self_attn(t, t, t) if self.first else t + self.self_attn(t + p, t + p, t))
        t = self.norm2(t + self.cross_attn_token_to_image(t + p, m + pi, m))
        t = self.norm3(t + self.mlp(t))
        m = self.norm4(m + self.cross_attn_image_to_token(m + pi, t + p, t))
        return t, m


class TwoWayTransformer(nn.Module):
    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(width, hidden, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(width, width // 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[B, L, M]`, image `[B, N, M]` and its positions `[N, M]` → both, of the same shapes."""
        t, m = tokens, image
        for layer in self.layers:
            t, m = layer(t, m, tokens, positions)
        final = self.final_attn_token_to_image(t + tokens, m + positions, m)
        return self.norm_final_attn(t + final), m


class PositionMap(nn.Module):
    """Random Fourier features of a patch's place; the frequencies are a buffer of the checkpoint."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, side: int) -> Tensor:
        """Positions `[side·side, M]` of square patches, row by row; x comes before y."""
        frequencies = self.positional_encoding_gaussian_matrix
        places = (torch.arange(side, device=frequencies.device, dtype=frequencies.dtype) + 0.5) / side
        y, x = torch.meshgrid(places, places, indexing="ij")
        angles = 2 * math.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(0, 1)


class BIM(nn.Module):
    """Released sizes: width 1024, text 768, 320 channels of the U-Net, MLP 2048, depth 2."""

    def __init__(self, width: int, text_width: int, channels: int, hidden: int, depth: int = 2) -> None:
        super().__init__()
        self.modulate_head = nn.Linear(text_width, width)
        self.modulate_transformer = TwoWayTransformer(width, hidden, depth)
        self.pe_layer = PositionMap(width)
        self.dimension_reduction_head_qformer_out = nn.Linear(width, text_width)
        self.dimension_reduction_head_zeroconv = nn.Conv2d(width, channels, 1)
        for head in (self.dimension_reduction_head_qformer_out, self.dimension_reduction_head_zeroconv):
            nn.init.zeros_(head.weight)
            assert head.bias is not None
            nn.init.zeros_(head.bias)

    def forward(self, features: Tensor, queries: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """CLIP features F `[B, N, M]` of N = side² patches, Q `[B, L, D]` → T `[B, L, D]`, V `[B, C, h, w]`.

        `height` and `width` are h and w, those of the latents.
        """
        side = math.isqrt(features.shape[1])
        tokens, image = self.modulate_transformer(self.modulate_head(queries), features, self.pe_layer(side))
        # a 1×1 convolution and a resize commute; this way round the resize has fewer channels
        small = self.dimension_reduction_head_zeroconv(image.transpose(1, 2).unflatten(2, (side, side)))
        resized = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
        return self.dimension_reduction_head_qformer_out(tokens), resized


def text_states(queries: Tensor, text: Tensor) -> Tensor:
    """E `[B, L, D]` of Q and T: what the U-Net takes in place of CLIP's text states."""
    return queries + TEXT_SHARE * text
