"""A tiny VAE in place of Stable Diffusion's, such as TAESD: a fraction of the operations, at some loss of detail."""

from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from ..core.schema import JsonObject
from .settings import check_tiny_vae_settings, check_vae_settings

SCALING = 0.18215  # of Stable Diffusion 1.x and 2.x


class TinyVae(AutoencoderTiny):
    """diffusers' `AutoencoderTiny` with the latents of `AutoencoderKL`, so that all code takes either.

    The network reads and writes latents that are scaled already. InstructPix2Pix gives the source latents to the
    U-Net unscaled: diffusers' own pipeline, with this class of theirs, gives them five times too small.

    Takes the keywords of `AutoencoderTiny`.

    Raises:
        MRCError: a setting that is not computed here.
    """

    def __init__(self, block_out_channels: object = None, **config: Any) -> None:
        """`block_out_channels` is in the files that diffusers writes, and is `decoder_block_out_channels` again."""
        check_tiny_vae_settings(config)
        super().__init__(**config)
        self.register_to_config(scaling_factor=SCALING)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        latents = super().encode(x).latents / SCALING
        exact = DiagonalGaussianDistribution(torch.cat([latents, latents], dim=1), deterministic=True)
        return AutoencoderKLOutput(latent_dist=exact) if return_dict else (exact,)

    def decode(self, x: torch.Tensor, generator: torch.Generator | None = None, return_dict: bool = True) -> Any:
        return super().decode(x * SCALING, generator, return_dict)


Vae: TypeAlias = AutoencoderKL | TinyVae


def make_vae(config: JsonObject) -> Vae:
    """The VAE that the settings describe, of the class that they name.

    Raises:
        MRCError: a setting that is not computed here.
    """
    if config.get("_class_name") == "AutoencoderTiny":
        return TinyVae(**{key: value for key, value in config.items() if not key.startswith("_")})
    vae = AutoencoderKL.from_config(config)
    check_vae_settings(vae.config)
    return vae
