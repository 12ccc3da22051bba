"""The modules behind the graphs of `engine.graphs` (docs/mathematics.md).

    text_encoder, vae_encoder, conditioner   once an edit
    unet, or unet_shallow (lossy)            once a step
    vae_decoder                              once an edit

Every input and output is float32 (or int64), whatever the precision inside, so that a runtime
needs no half-precision arrays. Shape letters:

    B images   T texts   R rewards   S steps   P U-Net inputs before the text differs   N branches
    L text length (77)   D text width   C = block_out_channels[0]   Z latent channels   h×w latents of H×W pixels
    Σt channels of all timestep biases   Σk channels of all text keys and values   Σr of all reward layers
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel

from .layers import cross_attentions, resnet, resnets, upsamplers
from .step import FOLDED_DIMS, UNetShallow, UNetStep  # noqa: F401 - UNetShallow is found by name
from .tiny_vae import TinyVae, Vae
from .unet import MRCUNet


def graph_module(name: str, part: nn.Module, fused: bool = False) -> nn.Module:
    """The class of that name over a part of a checkpoint, whose parameters it shares.

    Args:
        fused: steps and the VAE's decoder compute with the kernels what the exported graph writes out.
    """
    module = globals()[name]
    return module(part, fused) if issubclass(module, UNetStep | VaeDecoder) else module(part)


class TextEncoder(nn.Module):
    """Token ids `[T, L]` int64 → states `[T, L, D]`, pooled `[T, D]`."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        output = self.text_encoder(input_ids)
        return output.last_hidden_state.float(), output.pooler_output.float()


class VaeEncoder(nn.Module):
    """Images `[B, 3, H, W]` in -1…1 → source latents `[B, Z, h, w]`: the mode, unscaled."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor]:
        moments = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return (moments.mode().float(),)


SILU = ("silu", "swish")  # two names of one function


class VaeDecoder(nn.Module):
    """Latents `[B, Z, h, w]` → images `[B, 3, H, W]`, about -1…1."""

    def __init__(self, vae: Vae, fused: bool = False) -> None:
        super().__init__()
        self.vae = vae
        self.fused = fused and vae.config.act_fn in SILU
        self.upsamplers = nn.ModuleList() if isinstance(vae, TinyVae) else upsamplers(vae.decoder.up_blocks)

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        if isinstance(self.vae, TinyVae):
            return (self.vae.decoder(latents.to(self.vae.dtype)).float(),)
        decoder = self.vae.decoder
        hidden = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        if self.vae.post_quant_conv is not None:
            hidden = self.vae.post_quant_conv(hidden)
        hidden = decoder.mid_block(decoder.conv_in(hidden))
        upsamplers = iter(self.upsamplers)
        for block in decoder.up_blocks:
            for layer in block.resnets:
                hidden = resnet(layer, hidden, fused=True) if self.fused else layer(hidden, None)
            if block.upsamplers:
                hidden = next(upsamplers)(hidden)
        return (decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden))).float(),)


REWARD_EMBEDDINGS = ("add_embedding", "add_embedding2", "text_linear", "text_linear2")
REWARD_ATTENTION = ("ca.attention.self", "ca.attention.output.dense")  # of each reward layer


class Conditioner(nn.Module):
    """Everything in the loop that depends on texts, rewards and timesteps alone.

    Text keys and values of all cross-attentions, the timestep bias of every ResNet for every
    (step, reward), which has a student's guidance scales in it, and the attention of each reward layer folded to a
    gate: with two keys, softmax is a sigmoid, and `dense(attention(x)) = base + update · σ(gate · x + gate_bias)`, one
    gate a head. Of several layers these tensors stand beside each other.
    """

    def __init__(self, unet: MRCUNet) -> None:
        super().__init__()
        self.unet = unet

    def own(self) -> list[nn.Parameter]:
        """The parameters that this computes with; all others of the U-Net are a step's."""
        unet = self.unet
        texts = [project for layer in cross_attentions(unet) for project in (layer.to_k, layer.to_v)]
        times = [unet.time_embedding, *(block.time_emb_proj for block in resnets(unet))]
        times += [unet.guidance_embedding] if unet.embeds_guidance else []
        embeddings = [unet.get_submodule(name) for name in REWARD_EMBEDDINGS] if unet.rewards else []
        rewards = [layer.get_submodule(name) for layer in unet.reward_layers() for name in REWARD_ATTENTION]
        parameters = [value for layer in (*texts, *times, *embeddings, *rewards) for value in layer.parameters()]
        return [*parameters, unet.reward_type_embedding] if unet.reward_injection == "blocks" else parameters

    def forward(
        self, timesteps: Tensor, text_states: Tensor, reward_scores: Tensor | None = None,
        reward_text: Tensor | None = None, guidance_scales: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Timesteps `[S]`, states `[T, L, D]`, scores `[R, 3]`, pooled reward texts `[R, D]`, a student's scales
        `[R, 2]` → time_bias `[S, R, Σt]`, text_kv `[T, L, Σk]`, then with rewards gate `[R, 8, Σr]`,
        gate_bias `[R, 8, K]`, base `[R, Σr, 1]`, update `[R, Σr, 8]` of K reward layers; R = 1 without rewards and
        scales.
        """
        unet = self.unet
        projections = [project for layer in cross_attentions(unet) for project in (layer.to_k, layer.to_v)]
        text_kv = torch.cat([project(text_states) for project in projections], dim=-1)
        time = unet.time_proj(timesteps)[:, None]
        if guidance_scales is not None:
            time = time + unet.guidance_embedding(guidance_scales)
        emb = unet.time_embedding(time)
        folded: tuple[Tensor, ...] = ()
        if reward_scores is not None and reward_text is not None:
            bias, tokens = unet.reward_embedding(reward_scores, reward_text)
            emb = emb + bias
            layers = [layer.folded_attention(tokens) for layer in unet.reward_layers()]
            folded = tuple(
                torch.cat(parts, dim) for parts, dim in zip(zip(*layers, strict=True), FOLDED_DIMS, strict=True)
            )
        emb = F.silu(emb)
        time_bias = torch.cat([block.time_emb_proj(emb) for block in resnets(unet)], dim=-1)
        return time_bias, text_kv, *folded
