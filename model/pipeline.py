"""The eager pipeline, as plain as the paper: the ground truth for every export and every kernel.

Shapes: B images of H×W pixels, latents h×w of Z channels, text length 77, width D.
"""

import inspect

import torch
from diffusers import SchedulerMixin

from ..core.errors import MRCError
from ..core.reward import BEST, NO_FAULTS
from .checkpoint import Checkpoint


def token_ids(checkpoint: Checkpoint, texts: list[str]) -> torch.Tensor:
    """`[B, L]` int64, padded and cut to the text encoder's length."""
    length = checkpoint.text_encoder.config.max_position_embeddings
    return checkpoint.tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encode_text(checkpoint: Checkpoint, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Text states `[B, 77, D]` and pooled states `[B, D]`; longer texts are cut at 77 tokens."""
    output = checkpoint.text_encoder(token_ids(checkpoint, texts).to(checkpoint.text_encoder.device))
    return output.last_hidden_state, output.pooler_output


@torch.no_grad()
def encode_image(checkpoint: Checkpoint, images: torch.Tensor) -> torch.Tensor:
    """Images `[B, 3, H, W]` in -1…1 → source latents `[B, Z, h, w]`: the mode, unscaled."""
    return checkpoint.vae.encode(images).latent_dist.mode()


@torch.no_grad()
def decode_latents(checkpoint: Checkpoint, latents: torch.Tensor) -> torch.Tensor:
    """Latents `[B, Z, h, w]` → images `[B, 3, H, W]`, about -1…1."""
    return checkpoint.vae.decode(latents / checkpoint.vae.config.scaling_factor).sample


@torch.no_grad()
def edit_latents(
    checkpoint: Checkpoint,
    images: torch.Tensor,
    instructions: list[str],
    generators: list[torch.Generator],
    *,
    reward_scores: tuple[float, float, float] = BEST,
    reward_text: str = NO_FAULTS,
    num_inference_steps: int = 30,
    guidance_scale: float = 7.5,
    image_guidance_scale: float = 1.5,
    scheduler: SchedulerMixin | None = None,
    read: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Denoise one edit an image with all three guidance branches, as released; with the one of a distilled student.

    Args:
        images: `[B, 3, H, W]` in -1…1, sides multiples of 8.
        instructions: B texts.
        generators: B CPU generators, one an image, so that results do not depend on the batch.
        scheduler: a diffusers scheduler; the checkpoint's own by default.
        read: of SmartEdit, text states `[B, L, D]` that take the place of the instructions', and feature bias
            `[B, C, h, w]`.

    Returns:
        Final latents `[B, Z, h, w]`.
    """
    if not len(images) == len(instructions) == len(generators):
        raise MRCError(f"{len(images)} images, {len(instructions)} instructions, {len(generators)} generators: give B")
    scheduler = scheduler or checkpoint.scheduler
    branches = 1 if checkpoint.unet.embeds_guidance else 3
    states, _ = encode_text(checkpoint, instructions + [""] * len(images))
    text, empty = states.chunk(2)
    text, given = (text, {}) if read is None else (read[0], {"feature_bias": torch.cat([read[1]] * branches)})
    text = torch.cat([text, empty, empty][:branches])
    source = encode_image(checkpoint, images)
    source = torch.cat([source, source, torch.zeros_like(source)][:branches])
    if checkpoint.unet.embeds_guidance:
        scales = torch.tensor([[guidance_scale, image_guidance_scale]], device=source.device)
        given["guidance_scales"] = scales.expand(len(text), 2)
    if checkpoint.unet.rewards:
        pooled = encode_text(checkpoint, [reward_text])[1]
        scores = torch.tensor([reward_scores], dtype=torch.float32, device=source.device)
        given["reward_scores"] = scores.expand(len(text), 3)
        given["reward_text_embeds"] = pooled.expand(len(text), -1)

    scheduler.set_timesteps(num_inference_steps)
    draws = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if draws else {}
    shape = (1, checkpoint.vae.config.latent_channels, *source.shape[2:])
    latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    latents = latents.to(source.device, source.dtype) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        sample = scheduler.scale_model_input(torch.cat([latents] * branches), timestep)
        noise = checkpoint.unet(torch.cat([sample, source], dim=1), timestep, text, **given)
        if branches == 3:
            text_noise, image_noise, none = noise.chunk(3)
            noise = none + guidance_scale * (text_noise - image_noise) + image_guidance_scale * (image_noise - none)
        latents = scheduler.step(noise, timestep, latents, **extra).prev_sample
    return latents
