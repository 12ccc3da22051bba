"""What a config of a checkpoint may ask for. An absurd size would take hours or all memory before it failed."""

import math
import reprlib
from pathlib import Path

from ..core.errors import MRCError
from ..core.files import read_json
from ..core.schema import JsonObject

REMEDY = "the checkpoint is incomplete or damaged, restore the original file"
LAYERS, WIDTH = 64, 16_384
LIMITS = {
    "layers_per_block": LAYERS, "transformer_layers_per_block": LAYERS, "reverse_transformer_layers_per_block": LAYERS,
    "num_encoder_blocks": LAYERS, "num_decoder_blocks": LAYERS, "num_hidden_layers": LAYERS,
    "block_out_channels": WIDTH, "encoder_block_out_channels": WIDTH, "decoder_block_out_channels": WIDTH,
    "in_channels": WIDTH, "out_channels": WIDTH, "latent_channels": WIDTH, "cross_attention_dim": WIDTH,
    "attention_head_dim": WIDTH, "num_attention_heads": WIDTH, "norm_num_groups": WIDTH, "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH, "projection_dim": WIDTH, "max_position_embeddings": WIDTH, "vocab_size": 1 << 22,
    "num_train_timesteps": 10_000,
}  # fmt: skip
LEVELS = 16  # entries of a list


def read_config(path: Path) -> JsonObject:
    """The content of a config file.

    Raises:
        MRCError: no JSON object, or a size that no model of this family has.
    """
    config = read_json(path, REMEDY)
    for key, value in config.items():
        if isinstance(value, list) and len(value) > LEVELS and key != "trained_betas":
            raise MRCError(f"{path}: {key} has {len(value)} entries, not at most {LEVELS}; {REMEDY}")
        if key in LIMITS:
            check_sizes(f"{path}: {key}", value, LIMITS[key])
    factor = config.get("scaling_factor", 1.0)  # of the VAE's latents
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        raise MRCError(f"{path}: scaling_factor is {reprlib.repr(factor)}, not a number above 0; {REMEDY}")
    return config


def check_sizes(name: str, value: object, limit: int) -> None:
    """Refuse `value`, or an entry of it, that is a number outside 1 to `limit`; diffusers checks the types."""
    if isinstance(value, list):
        for each in value:
            check_sizes(name, each, limit)
    elif isinstance(value, int | float) and not 1 <= value <= limit:
        raise MRCError(f"{name} is {reprlib.repr(value)}, not a number from 1 to {limit}; {REMEDY}")
