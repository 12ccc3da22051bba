"""Tensor names of the original Stable Diffusion code (latent diffusion, OpenCLIP) under those of diffusers.

A name that is not known keeps its own, so that whoever fills a module with it refuses it by that name.
"""

import re

from .weights import State

RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "out_layers.0": "norm2", "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut",
}  # fmt: skip
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}  # fmt: skip
VAE_PARTS = {
    "norm_out": "conv_norm_out", "nin_shortcut": "conv_shortcut", "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1", "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.to_q", "mid.attn_1.k": "mid_block.attentions.0.to_k",
    "mid.attn_1.v": "mid_block.attentions.0.to_v", "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
}  # fmt: skip
OPEN_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight", "ln_final": "final_layer_norm",
    "transformer.resblocks": "encoder.layers", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip


def translated(name: str, words: dict[str, str]) -> str:
    """`name` with each whole run of its dotted parts that `words` has replaced."""
    for old, new in words.items():
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, name)
    return name


def unet_name(name: str, layers: int) -> str:
    """The name in a U-Net of `layers` ResNets a down block, as the original code numbers its blocks."""
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", name)
    if match and name[:15] != "input_blocks.0.":
        number, inner = int(match[2]), translated(match[4], RESNET)
        block, layer = divmod(number - 1 if match[1] == "input" else number, layers + 1)
        side = "down" if match[1] == "input" else "up"
        if inner.startswith("op."):
            return f"down_blocks.{block}.downsamplers.0.conv.{inner[3:]}"
        if side == "up" and match[3] != "0" and inner.startswith("conv."):
            return f"up_blocks.{block}.upsamplers.0.{inner}"
        return f"{side}_blocks.{block}.{'attentions' if match[3] == '1' else 'resnets'}.{layer}.{inner}"
    return translated(translated(name, UNET_ENDS), RESNET)


def vae_name(name: str, levels: int) -> str:
    """The name in a VAE of `levels` sizes; the original decoder counts its blocks from the largest."""
    name = translated(name, VAE_PARTS)
    name = re.sub(r"^encoder\.down\.(\d+)\.block", r"encoder.down_blocks.\1.resnets", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.downsample", r"encoder.down_blocks.\1.downsamplers.0", name)
    match = re.match(r"decoder\.up\.(\d+)\.(block|upsample)", name)
    if match is None:
        return name
    part = {"block": "resnets", "upsample": "upsamplers.0"}[match[2]]
    return f"decoder.up_blocks.{levels - 1 - int(match[1])}.{part}{name[match.end() :]}"


def open_clip_state(state: State) -> State:
    """The text encoder of OpenCLIP; query, key and value are one tensor there."""
    renamed: State = {}
    for name, value in state.items():
        name = translated(name, OPEN_CLIP)
        if match := re.fullmatch(r"(.+)\.attn\.in_proj_(weight|bias)", name):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{match[1]}.self_attn.{letter}_proj.{match[2]}"] = part
        else:
            renamed[name] = value
    return renamed
