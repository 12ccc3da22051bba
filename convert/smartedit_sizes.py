"""Sizes of a released SmartEdit, read from the shapes of its tensors; the release has no configuration of them."""

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import LlamaConfig

from ..core.errors import MRCError
from ..model.smartedit.folder import BIMSizes, QFormerSizes

State = dict[str, Tensor]
HEAD_WIDTH = 128  # of LLaMA, where the file does not tell
TRAINED_AT = 32  # latents a side: 256 pixels
UNET_HEADS = 8


def shape(state: State, key: str) -> list[int]:
    if key not in state:
        raise MRCError(f"the release's files lack {key}; download them again")
    return list(state[key].shape)


def count(keys: Iterable[str], pattern: str) -> int:
    """How many numbers the group of `pattern` takes among the keys."""
    return len({match[1] for key in keys if (match := re.match(pattern, key))})


def llm_config(state: State, prefix: str) -> LlamaConfig:
    rows, width = shape(state, f"{prefix}embed_tokens.weight")
    frequencies = state.get(f"{prefix}layers.0.self_attn.rotary_emb.inv_freq")
    head = HEAD_WIDTH if frequencies is None else 2 * len(frequencies)
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=shape(state, f"{prefix}layers.0.mlp.gate_proj.weight")[0],
        num_hidden_layers=count(state, re.escape(prefix) + r"layers\.(\d+)\."),
        num_attention_heads=width // head,
        num_key_value_heads=shape(state, f"{prefix}layers.0.self_attn.k_proj.weight")[0] // head,
        rms_norm_eps=1e-6,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def qformer_sizes(state: State, heads: int) -> QFormerSizes:
    layer = "sd_qformer.encoder.layer.0."
    _, queries, width = shape(state, "sd_query_tokens")
    return QFormerSizes(
        queries=queries,
        width=width,
        heads=heads,
        feed_forward=shape(state, f"{layer}intermediate_query.dense.weight")[0],
        layers=count(state, r"sd_qformer\.encoder\.layer\.(\d+)\."),
        context_width=shape(state, f"{layer}crossattention.self.key.weight")[1],
    )


def bim_sizes(state: State) -> BIMSizes:
    width, text_width = shape(state, "modulate_head.weight")
    return BIMSizes(
        width=width,
        text_width=text_width,
        channels=shape(state, "dimension_reduction_head_zeroconv.weight")[0],
        hidden=shape(state, "modulate_transformer.layers.0.mlp.lin1.weight")[0],
        depth=count(state, r"modulate_transformer\.layers\.(\d+)\."),
    )


def unet_config(state: State, path: Path) -> dict:
    """The `config.json` of a Stable Diffusion 1.5 U-Net with these tensors."""
    try:
        blocks = count(state, r"down_blocks\.(\d+)\.")
        attends = [f"down_blocks.{i}.attentions.0.norm.weight" in state for i in range(blocks)]
        widths = [shape(state, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(blocks)]
        text = shape(state, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")[1]
        channels = shape(state, "conv_in.weight")[1]
    except MRCError as error:
        raise MRCError(f"{path} is no Stable Diffusion 1.5 U-Net: {error}") from None
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": TRAINED_AT,
        "in_channels": channels,
        "out_channels": shape(state, "conv_out.weight")[0],
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)],
        "layers_per_block": count(state, r"down_blocks\.0\.resnets\.(\d+)\."),
        "cross_attention_dim": text,
        "attention_head_dim": UNET_HEADS,
    }
