"""The model cut into graphs with different clocks (docs/mathematics.md).

    text_encoder, vae_encoder, conditioner   once an edit
    unet, or unet_shallow (lossy)            once a step
    vae_decoder                              once an edit

Every input and output is float32 (or int64), whatever the precision inside, so that a runtime
needs no half-precision arrays. Shape letters, used throughout:

    B images   T texts   R rewards   S steps   P U-Net inputs before the text differs   N branches
    L text length (77)   D text width   C = block_out_channels[0]   h×w latents = H/8 × W/8 pixels
    Σt channels of all timestep biases   Σk channels of all text keys and values
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from transformers import CLIPTextModel

from ..core.errors import MRCError
from ..kernels import ops
from .unet import MRCUNet

SHALLOW = 1  # last ResNets, with their skips, that a shallow step computes


class TextEncoder(nn.Module):
    """Token ids `[T, L]` int64 → states `[T, L, D]`, pooled `[T, D]`."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        output = self.text_encoder(input_ids)
        return output.last_hidden_state.float(), output.pooler_output.float()


class VaeEncoder(nn.Module):
    """Images `[B, 3, H, W]` in -1…1 → source latents `[B, 4, h, w]`: the mode, unscaled."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor]:
        moments = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return (moments.mode().float(),)


class Upsampler(nn.Module):
    """Every pixel twice in both directions, then a 3×3 convolution: `[N, C, h, w]` → `[N, C', 2h, 2w]`.

    A large pixel sees 2×2 small ones; which taps meet in one of them depends on whether its row and column are
    even. So this is four 2×2 convolutions of the small image, whose taps are summed beforehand: 4/9 of the work.
    """

    def __init__(self, block: Upsample2D) -> None:
        super().__init__()
        old, self.bias = block.conv.weight.detach(), block.conv.bias
        met = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).to(old.device)  # [even or odd, 2, 3]
        weights = torch.einsum("yak,xbl,oikl->yxoiab", met, met, old.float()).to(old.dtype).flatten(0, 1)
        self.weights = nn.ParameterList(weight.contiguous(memory_format=torch.channels_last) for weight in weights)

    def forward(self, hidden: Tensor) -> Tensor:
        corners = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row, column
        padded = (F.pad(hidden, (1 - x, x, 1 - y, y)) for y, x in corners)
        parts = [F.conv2d(part, weight, self.bias) for part, weight in zip(padded, self.weights, strict=True)]
        return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), 2)


class VaeDecoder(nn.Module):
    """Latents `[B, 4, h, w]` → images `[B, 3, H, W]`, about -1…1."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.upsamplers = upsamplers(vae.decoder.up_blocks)

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        decoder = self.vae.decoder
        hidden = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        if self.vae.post_quant_conv is not None:
            hidden = self.vae.post_quant_conv(hidden)
        hidden = decoder.mid_block(decoder.conv_in(hidden))
        growing = iter(self.upsamplers)
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                hidden = resnet(hidden, None)
            if block.upsamplers:
                hidden = next(growing)(hidden)
        return (decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden))).float(),)


def upsamplers(blocks: nn.ModuleList) -> nn.ModuleList:
    """Those of the blocks that have one, in order."""
    return nn.ModuleList(Upsampler(block.upsamplers[0]) for block in blocks if block.upsamplers)


def resnets(unet: MRCUNet) -> list[ResnetBlock2D]:
    """All ResNets in the order of the forward pass."""
    return [resnet for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) for resnet in block.resnets]


def cross_attentions(unet: MRCUNet) -> list[Attention]:
    """All cross-attentions in the order of the forward pass."""
    blocks = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    transformers = [transformer for block in blocks for transformer in getattr(block, "attentions", ())]
    return [layer.attn2 for transformer in transformers for layer in transformer.transformer_blocks]


def check_injection(unet: MRCUNet) -> None:
    """Refuse a U-Net that the conditioner and step graphs do not compute."""
    if unet.reward_injection != "time":
        raise MRCError(
            f"the U-Net has reward_injection={unet.reward_injection!r}, which is for training and eager editing; "
            "the graphs and the export take 'time'"
        )


class Conditioner(nn.Module):
    """Everything in the loop that depends on texts, rewards and timesteps alone.

    Text keys and values of all cross-attentions, the timestep bias of every ResNet for every
    (step, reward), and the reward attention folded to a gate: with two keys, softmax is a sigmoid,
    and `dense(attention(x)) = base + update · σ(gate · x + gate_bias)`, one gate a head.
    """

    def __init__(self, unet: MRCUNet) -> None:
        super().__init__()
        check_injection(unet)
        self.unet = unet

    def forward(
        self, timesteps: Tensor, text_states: Tensor, reward_scores: Tensor | None = None,
        reward_text: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Timesteps `[S]`, states `[T, L, D]`, scores `[R, 3]`, pooled reward texts `[R, D]` →
        time_bias `[S, R, Σt]`, text_kv `[T, L, Σk]`, then with rewards gate `[R, 8, C]`,
        gate_bias `[R, 8, 1]`, base `[R, C, 1]`, update `[R, C, 8]`; R = 1 without rewards.
        """
        unet = self.unet
        projections = [project for layer in cross_attentions(unet) for project in (layer.to_k, layer.to_v)]
        text_kv = torch.cat([project(text_states) for project in projections], dim=-1)
        emb = unet.time_embedding(unet.time_proj(timesteps))[:, None]
        folded: tuple[Tensor, ...] = ()
        if unet.rewards:
            bias, tokens = unet.reward_embedding(reward_scores, reward_text)
            emb = emb + bias
            folded = unet.folded_attention(tokens)
        emb = F.silu(emb)
        time_bias = torch.cat([resnet.time_emb_proj(emb) for resnet in resnets(unet)], dim=-1)
        return time_bias, text_kv, *folded


class UNetStep(nn.Module):
    """One step of the U-Net with guidance: the same modules as `MRCUNet`, called for speed.

    Branches share what comes before the first cross-attention (P inputs, N branches), and are
    combined before `conv_out`, which is linear. `fused` computes with the kernels (`kernels.ops`) what
    the exported graph spells out.
    """

    def __init__(self, unet: MRCUNet, fused: bool = False) -> None:
        super().__init__()
        check_injection(unet)
        if not any(hasattr(block, "attentions") for block in unet.down_blocks):
            raise MRCError("no down block has cross-attention; give one of CrossAttnDownBlock2D")
        self.unet = unet
        self.fused = fused
        self.norm_silu = fused_norm_silu if fused else norm_silu
        self.upsamplers = upsamplers(unet.up_blocks)

    def forward(
        self, sample: Tensor, branch: Tensor, guidance: Tensor, time_bias: Tensor, text_kv: Tensor,
        *folded: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Predict the guided noise.

        Args:
            sample: `[P, 8, h, w]`, scaled latents and source latents.
            branch: `[N]` int64, the row of `sample` each branch continues.
            guidance: `[G, N]`, weight of each branch in each row of noise; where branches are spread
                over several calls, the sum of their noises is the noise of the sum.
            time_bias: `[P, Σt]`, text_kv: `[N, L, Σk]`, folded: as from `Conditioner`, P for R.

        Returns:
            Guided noise `[G, 4, h, w]`, and the features `[N, F, h, w]` that `UNetShallow` goes on from.
        """
        unet = self.unet
        hidden = self.begin(sample, folded)
        biases = self.biases(time_bias, branch)
        keys_values = self.keys_values(text_kv)

        branched = False  # P inputs become N branches in the first cross-attention
        skips = [hidden]
        for block in unet.down_blocks:
            for i, resnet in enumerate(block.resnets):
                hidden = self.resnet(resnet, hidden, next(biases)[branched])
                if hasattr(block, "attentions"):
                    hidden = transformer(block.attentions[i], hidden, keys_values, None if branched else branch)
                    if not branched:
                        skips, branched = [skip.index_select(0, branch) for skip in skips], True
                skips.append(hidden)
            for downsampler in block.downsamplers or ():
                hidden = downsampler(hidden)
                skips.append(hidden)

        hidden = self.resnet(unet.mid_block.resnets[0], hidden, next(biases)[branched])
        for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
            hidden = self.resnet(resnet, transformer(attention, hidden, keys_values), next(biases)[branched])

        growing = iter(self.upsamplers)
        for block in unet.up_blocks:
            for i, resnet in enumerate(block.resnets):
                if len(skips) == SHALLOW:
                    deep = hidden
                hidden = self.resnet(resnet, torch.cat([hidden, skips.pop()], dim=1), next(biases)[branched])
                if hasattr(block, "attentions"):
                    hidden = transformer(block.attentions[i], hidden, keys_values)
            if block.upsamplers:
                hidden = next(growing)(hidden)
        return self.guide(hidden, guidance), deep.float()

    def begin(self, sample: Tensor, folded: tuple[Tensor, ...]) -> Tensor:
        """`conv_in` and the reward block: `[P, 8, h, w]` → `[P, C, h, w]`."""
        dtype = self.unet.conv_in.weight.dtype
        hidden = self.unet.conv_in(sample.to(dtype))
        return self.reward_block(hidden, *(tensor.to(dtype) for tensor in folded)) if self.unet.rewards else hidden

    def biases(self, time_bias: Tensor, branch: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Timestep bias of each ResNet, for the P inputs and for the N branches."""
        channels = [resnet.out_channels for resnet in resnets(self.unet)]
        time_bias = time_bias.to(self.unet.conv_in.weight.dtype)[..., None, None]
        return zip(time_bias.split(channels, 1), time_bias.index_select(0, branch).split(channels, 1), strict=True)

    def keys_values(self, text_kv: Tensor) -> Iterator[Tensor]:
        """Key and value of each cross-attention, `[N, L, C']`."""
        widths = [attention.inner_dim for attention in cross_attentions(self.unet) for _ in "kv"]
        return iter(text_kv.to(self.unet.conv_in.weight.dtype).split(widths, dim=2))

    def guide(self, hidden: Tensor, guidance: Tensor) -> Tensor:
        """Last features `[N, C, h, w]` → guided noise `[G, 4, h, w]`, linear in `guidance`."""
        last = self.unet.conv_out
        hidden = self.norm_silu(self.unet.conv_norm_out, hidden).float()
        guided = (guidance @ hidden.flatten(1)).unflatten(1, hidden.shape[1:]).to(last.weight.dtype)
        noise = F.conv2d(guided, last.weight, padding=last.padding).float()
        return noise + guidance.sum(1)[:, None, None, None] * last.bias.float()[:, None, None]

    def reward_block(self, hidden: Tensor, gate: Tensor, gate_bias: Tensor, base: Tensor, update: Tensor) -> Tensor:
        unet = self.unet
        if self.fused:
            groups = unet.proj_deal["norm"].num_groups
            return ops.reward_block(hidden, gate, gate_bias, base, update, list(unet.reward_weights()), groups)
        x = unet.reward_positions(hidden)
        positions = x.transpose(1, 2)  # [P, C, h·w]
        attended = base + update @ torch.sigmoid(gate @ positions + gate_bias)
        return unet.reward_residual(hidden, x, attended.transpose(1, 2))

    def resnet(self, block: ResnetBlock2D, hidden: Tensor, time_bias: Tensor) -> Tensor:
        """`block` with its timestep projection `[*, C, 1, 1]` already computed."""
        inner = block.conv1(self.norm_silu(block.norm1, hidden))
        inner = block.conv2(self.norm_silu(block.norm2, inner, time_bias))
        shortcut = hidden if block.conv_shortcut is None else block.conv_shortcut(hidden)
        return (shortcut + inner) / block.output_scale_factor


class UNetShallow(UNetStep):
    """A step that keeps the deep features of an earlier one (DeepCache, arXiv 2312.00858): lossy.

    Computes `conv_in`, the reward block and the first ResNets, and the last ResNets on their skips.
    """

    def __init__(self, unet: MRCUNet, fused: bool = False) -> None:
        super().__init__(unet, fused)
        self.upsamplers = nn.ModuleList()  # all come before the last ResNets

    def forward(  # type: ignore[override]
        self, sample: Tensor, branch: Tensor, guidance: Tensor, time_bias: Tensor, text_kv: Tensor, deep: Tensor,
        *folded: Tensor,
    ) -> tuple[Tensor]:  # fmt: skip
        """As `UNetStep`, with its features `deep` `[N, F, h, w]` of an earlier step → noise `[G, 4, h, w]`."""
        unet = self.unet
        hidden = self.begin(sample, folded)
        biases = list(self.biases(time_bias, branch))
        keys_values = list(self.keys_values(text_kv))
        first, last = unet.down_blocks[0], unet.up_blocks[-1]
        attended = len(keys_values) - 2 * SHALLOW * hasattr(last, "attentions")

        skips = [hidden.index_select(0, branch)]
        hidden = skips[0]
        early = iter(keys_values)
        for i in range(SHALLOW - 1):
            hidden = self.resnet(first.resnets[i], hidden, biases[i][1])
            if hasattr(first, "attentions"):
                hidden = transformer(first.attentions[i], hidden, early)
            skips.append(hidden)

        hidden = deep.to(hidden.dtype)
        late = iter(keys_values[attended:])
        for i in range(-SHALLOW, 0):
            hidden = self.resnet(last.resnets[i], torch.cat([hidden, skips.pop()], dim=1), biases[i][1])
            if hasattr(last, "attentions"):
                hidden = transformer(last.attentions[i], hidden, late)
        return (self.guide(hidden, guidance),)


def norm_silu(norm: nn.GroupNorm, hidden: Tensor, time_bias: Tensor | None = None) -> Tensor:
    """SiLU of the norm of `hidden` `[N, C, h, w]` plus `time_bias` `[N, C, 1, 1]`."""
    return F.silu(norm(hidden if time_bias is None else hidden + time_bias))


def fused_norm_silu(norm: nn.GroupNorm, hidden: Tensor, time_bias: Tensor | None = None) -> Tensor:
    """`norm_silu` by one kernel."""
    offset = None if time_bias is None else time_bias.flatten(1)
    return ops.group_norm_silu(hidden, norm.weight, norm.bias, norm.num_groups, norm.eps, offset, True)


def transformer(
    block: Transformer2DModel, hidden: Tensor, keys_values: Iterator[Tensor], branch: Tensor | None = None
) -> Tensor:
    """`block` with text keys and values already computed.

    With `branch`, the P inputs become N branches right before the first cross-attention.
    """
    height, width = hidden.shape[2:]
    residual = hidden
    x = block.norm(hidden)
    x = block.proj_in(positions(x)) if block.use_linear_projection else positions(block.proj_in(x))
    for layer in block.transformer_blocks:
        normed = layer.norm1(x)
        attention = layer.attn1
        x = x + attend(attention, normed, attention.to_k(normed), attention.to_v(normed))
        if branch is not None:
            x, residual, branch = x.index_select(0, branch), residual.index_select(0, branch), None
        x = x + attend(layer.attn2, layer.norm2(x), next(keys_values), next(keys_values))
        x = x + feed_forward(layer.ff, layer.norm3(x))
    if block.use_linear_projection:
        x = block.proj_out(x)
    x = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return residual + (x if block.use_linear_projection else block.proj_out(x))


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


def attend(attention: Attention, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention of positions `[N, HW, C]` to `key` and `value` `[N, L, C']`."""
    query, key, value = (
        tensor.unflatten(2, (attention.heads, -1)).transpose(1, 2) for tensor in (attention.to_q(x), key, value)
    )
    mixed = F.scaled_dot_product_attention(query, key, value)
    return attention.to_out[0](mixed.transpose(1, 2).flatten(2))
