"""PyTorch, one plain module call a graph: the ground truth."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from ...core.errors import MRCError
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
        multiple=vae_scale * 2 ** (len(checkpoint.unet.config.block_out_channels) - 1),
        resolution=checkpoint.unet.config.sample_size * vae_scale,
        text_length=checkpoint.text_encoder.config.max_position_embeddings,
        eos_token_id=checkpoint.tokenizer.eos_token_id,
        pad_token_id=checkpoint.tokenizer.pad_token_id,
    )


def load(folder: Path, precision: str | None = None) -> "EagerBackend":
    if precision not in (None, "float32"):
        raise MRCError(f"precision is {precision!r}; eager is the ground truth, in float32: use another backend")
    return EagerBackend(load_checkpoint(folder))


class EagerBackend:
    """The `Backend` protocol over a loaded checkpoint."""

    shallow = False
    unet_loop = None

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

    def conditioner(self, *, timesteps, text_states, reward_scores, reward_text) -> dict[str, np.ndarray]:
        rewards = {"reward_scores": reward_scores, "reward_text_embeds": reward_text} if self.geometry.rewards else {}
        return {"timesteps": timesteps, "encoder_hidden_states": text_states, **rewards}

    def layout(self, *, conditions, text, reward) -> dict[str, torch.Tensor]:
        rows = {"timesteps": slice(None), "encoder_hidden_states": text}
        return {name: torch.from_numpy(array[rows.get(name, reward)]) for name, array in conditions.items()}

    @torch.inference_mode()
    def unet(self, *, conditions, step, sample, branch, guidance, deep=None) -> tuple[np.ndarray, None]:
        rewards = {name: conditions[name][branch] for name in conditions if name.startswith("reward_")}
        noise = self.checkpoint.unet(
            torch.from_numpy(sample[branch]),
            conditions["timesteps"][step],
            conditions["encoder_hidden_states"],
            **rewards,
        )
        return np.tensordot(guidance, noise.numpy(), 1), None
