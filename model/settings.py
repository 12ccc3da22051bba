"""Which settings of `config.json` are computed here. What would be ignored in silence is refused by name."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from ..core.errors import MRCError

Config = Mapping[str, Any]
UNET = {
    "sample_size", "in_channels", "out_channels", "flip_sin_to_cos", "freq_shift", "down_block_types",
    "up_block_types", "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor",
    "dropout", "norm_num_groups", "norm_eps", "cross_attention_dim", "transformer_layers_per_block",
    "attention_head_dim", "use_linear_projection", "upcast_attention", "resnet_out_scale_factor", "conv_in_kernel",
    "conv_out_kernel",
    # without effect, since the settings that give them one are refused; the released config has the first
    "projection_class_embeddings_input_dim", "addition_time_embed_dim", "addition_embed_type_num_heads",
}  # fmt: skip
VAE = {
    "in_channels", "out_channels", "down_block_types", "block_out_channels", "layers_per_block", "act_fn",
    "latent_channels", "norm_num_groups", "sample_size", "scaling_factor", "force_upcast", "use_quant_conv",
    "use_post_quant_conv", "mid_block_add_attention",
}  # fmt: skip
# With `latent_magnitude` and `latent_shift`, which only make pictures of latents, and `force_upcast`, which is unused
TINY_VAE = {
    "in_channels", "out_channels", "encoder_block_out_channels", "decoder_block_out_channels", "act_fn", "upsample_fn",
    "latent_channels", "num_encoder_blocks", "num_decoder_blocks", "latent_magnitude", "latent_shift", "force_upcast",
}  # fmt: skip


def check_unet_settings(config: Config) -> None:
    """Of the settings outside `UNET` each must have diffusers' default."""
    act_fn = {"act_fn": "silu"} if config.get("act_fn") == "swish" else {}  # two names of one function
    refuse_others("unet", UNet2DConditionModel, {**config, **act_fn}, UNET)


def check_vae_settings(config: Config) -> None:
    """Of the settings outside `VAE` each must have diffusers' default; all up blocks are plain."""
    if other := sorted(set(config["up_block_types"]) - {"UpDecoderBlock2D"}):
        raise MRCError(f"vae config has up_block_types {other}; only UpDecoderBlock2D is computed")
    refuse_others("vae", AutoencoderKL, config, VAE | {"up_block_types"})


def check_tiny_vae_settings(config: Config) -> None:
    """Of the settings outside `TINY_VAE` each must have diffusers' default; both sides have as many levels."""
    refuse_others("vae", AutoencoderTiny, config, TINY_VAE)
    defaults = inspect.signature(AutoencoderTiny).parameters
    down, up = (config.get(name, defaults[name].default) for name in ("num_encoder_blocks", "num_decoder_blocks"))
    if len(down) != len(up):
        raise MRCError(
            f"vae config has num_encoder_blocks={down!r} and num_decoder_blocks={up!r}; give as many of each"
        )


def refuse_others(part: str, model: type, config: Config, computed: Collection[str]) -> None:
    for name, parameter in inspect.signature(model).parameters.items():
        value = config.get(name, parameter.default)
        if name not in computed and value != parameter.default:
            raise MRCError(f"{part} config has {name}={value!r}; only {parameter.default!r} is computed")
