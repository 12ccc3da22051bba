"""PyTorch, one plain module call a graph: the ground truth."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from ...model import Checkpoint, load_checkpoint
from ...model.pipeline import decode_latents, encode_image
from ..manifest import Geometry


def geometry(checkpoint: Checkpoint) -> Geometry:
    """What the loop must know of `checkpoint`."""
    vae_scale = 2 ** (len(checkpoint.vae.config.block_out_channels) - 1)
    return Geometry(
        rewards=checkpoint.unet.rewards,
        latent_channels=checkpoint.vae.config.latent_channels,
        vae_scale=vae_scale,
        resolution=checkpoint.unet.config.sample_size * vae_scale,
        text_length=checkpoint.text_encoder.config.max_position_embeddings,
        eos_token_id=checkpoint.tokenizer.eos_token_id,
        pad_token_id=checkpoint.tokenizer.pad_token_id,
    )


def load(folder: Path) -> "EagerBackend":
    return EagerBackend(load_checkpoint(folder))


class EagerBackend:
    """The `Backend` protocol over a loaded checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.geometry = geometry(checkpoint)
        self.scheduler = dict(checkpoint.scheduler.config)
        self.tokenizer: Tokenizer = checkpoint.tokenizer.backend_tokenizer

    @torch.inference_mode()
    def text_encoder(self, *, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output = self.checkpoint.text_encoder(torch.from_numpy(input_ids))
        return output.last_hidden_state.numpy(), output.pooler_output.numpy()

    @torch.inference_mode()
    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        return encode_image(self.checkpoint, torch.from_numpy(images)).numpy()

    @torch.inference_mode()
    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        return decode_latents(self.checkpoint, torch.from_numpy(latents)).numpy()

    def conditioner(self, *, timesteps, text_states, reward_scores, reward_text, text, reward) -> dict:
        conditions = {
            "timesteps": torch.from_numpy(timesteps),
            "encoder_hidden_states": torch.from_numpy(text_states[text]),
        }
        if self.geometry.rewards:
            conditions["reward_scores"] = torch.from_numpy(reward_scores[reward])
            conditions["reward_text_embeds"] = torch.from_numpy(reward_text[reward])
        return conditions

    @torch.inference_mode()
    def unet(self, *, conditions, step, sample, branch, guidance) -> tuple[np.ndarray, np.ndarray]:
        rewards = {name: conditions[name][branch] for name in conditions if name.startswith("reward_")}
        noise = self.checkpoint.unet(
            torch.from_numpy(sample[branch]),
            conditions["timesteps"][step],
            conditions["encoder_hidden_states"],
            **rewards,
        )
        return noise.numpy(), guidance
