"""PyTorch, one plain module call a graph: the ground truth."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...core.adapters import ADAPTERS
from ...core.errors import MRCError
from ...core.layout import LAYOUT
from ...model import Checkpoint
from ...model.adapters import load_adapted
from ...model.pipeline import decode_latents, encode_image
from ...model.scheduler import scheduler_config
from ..manifest import Geometry
from ..text import whole_texts
from .base import Backend, Conditions, GuidedUNet, feature_condition, guidance_condition
from .devices import float32_products, torch_device, use_threads
from .reading import load_reader

CPU = torch.device("cpu")


def geometry(checkpoint: Checkpoint) -> Geometry:
    """What the engine must know of `checkpoint`.

    Raises:
        MRCError: it is not of an InstructPix2Pix model, or does not say its resolution.
    """
    check_parts(checkpoint)
    vae_scale = 2 ** (len(checkpoint.vae.config.block_out_channels) - 1)
    return Geometry(
        rewards=checkpoint.unet.rewards,
        latent_channels=checkpoint.vae.config.latent_channels,
        vae_scale=vae_scale,
        multiple=vae_scale * 2 ** (len(checkpoint.unet.config.block_out_channels) - 1),
        resolution=latent_side(checkpoint.unet.config.sample_size) * vae_scale,
        text_length=checkpoint.text_encoder.config.max_position_embeddings,
        eos_token_id=checkpoint.tokenizer.eos_token_id,
        pad_token_id=checkpoint.tokenizer.pad_token_id,
        feature_channels=checkpoint.unet.config.block_out_channels[0] if checkpoint.unet.feature_bias else 0,
        embeds_guidance=checkpoint.unet.embeds_guidance,
    )


def check_parts(checkpoint: Checkpoint) -> None:
    """Refuse a U-Net that does not take two latents of the VAE and the text encoder's states."""
    unet, vae, text = (part.config for part in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder))
    latents = vae.latent_channels
    if (unet.in_channels, unet.out_channels) != (2 * latents, latents):
        kind = "it makes images from texts; " if unet.in_channels == unet.out_channels else ""
        raise MRCError(
            f"the U-Net has {unet.in_channels} input and {unet.out_channels} output channels, an InstructPix2Pix one "
            f"{2 * latents} and {latents}; {kind}give such a checkpoint, or train one (mrc-train --stage 1)"
        )
    if unet.cross_attention_dim != text.hidden_size:
        raise MRCError(
            f"the U-Net takes text states of width {unet.cross_attention_dim} and the text encoder gives "
            f"{text.hidden_size}; take both from one checkpoint"
        )


def latent_side(size: object) -> int:
    """The longer side of a U-Net's `sample_size`: a number, or height and width."""
    sides = [side for side in (size if isinstance(size, list | tuple) else [size]) if type(side) is int]
    if not 1 <= max(sides, default=0) <= 4096:
        raise MRCError(
            f"unet/config.json has the sample_size {size!r}; "
            "give the side in latents that the model was trained at (64 for Stable Diffusion 1.5)"
        )
    return max(sides)


def load(
    folder: Path,
    precision: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> "EagerBackend":
    """Open a checkpoint; `options` are keywords of `load_adapted` and of `load_reader`."""
    if precision not in (None, "float32"):
        raise MRCError(f"precision is {precision!r}; eager is the ground truth, in float32: use another backend")
    use_threads(threads)
    place = torch_device(device)
    loading = {name: options.pop(name) for name in (*LAYOUT, *ADAPTERS) if name in options}
    backend = EagerBackend(load_adapted(folder, **loading)[0], place)
    backend.reader = load_reader(folder, place, **options)
    return backend


class EagerBackend(Backend):
    """The backend over a loaded checkpoint.

    Args:
        dtype: of the U-Net and the VAE. Half precision has channels last.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.precision = str(dtype).removeprefix("torch.")
        self.geometry = geometry(checkpoint)
        self.defaults = checkpoint.defaults
        self.scheduler = scheduler_config(checkpoint.scheduler)
        self.tokenizer = whole_texts(checkpoint.tokenizer.backend_tokenizer)
        checkpoint.text_encoder.to(device)
        layout = torch.preserve_format if dtype == torch.float32 else torch.channels_last
        for module in (checkpoint.unet, checkpoint.vae):  # not module.to: see model.checkpoint.fill
            nn.Module.to(module, device, dtype, memory_format=layout)  # type: ignore[call-overload]
        self.unet: Callable[..., torch.Tensor] = checkpoint.unet

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    @contextmanager
    def computing(self) -> Iterator[None]:
        with torch.inference_mode(), float32_products(self.device):
            yield

    def text_encoder(self, *, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self.computing():
            output = self.checkpoint.text_encoder(self.tensor(input_ids))
            return to_numpy(output.last_hidden_state), to_numpy(output.pooler_output)

    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        with self.computing():
            return to_numpy(encode_image(self.checkpoint, self.tensor(images).to(self.dtype)))

    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        with self.computing():
            return to_numpy(decode_latents(self.checkpoint, self.tensor(latents).to(self.dtype)))

    def conditioner(
        self, *, timesteps: np.ndarray, text_states: np.ndarray, reward_scores: np.ndarray, reward_text: np.ndarray,
        feature_bias: np.ndarray | None = None, guidance_scales: np.ndarray | None = None,
    ) -> Conditions:  # fmt: skip
        rewards = {"reward_scores": reward_scores, "reward_text_embeds": reward_text} if self.geometry.rewards else {}
        more = feature_condition(self.geometry, feature_bias) | guidance_condition(self.geometry, guidance_scales)
        return {"timesteps": timesteps, "encoder_hidden_states": text_states, **rewards, **more}

    def guided_unet(
        self, conditions: Conditions, *, branch: np.ndarray, text: np.ndarray, reward: np.ndarray, image: np.ndarray
    ) -> "EagerUNet":
        return EagerUNet(self, conditions, branch, text, reward, image)


class EagerUNet(GuidedUNet):
    """The plain U-Net with the text states `[N, L, D]` and rewards of N branches."""

    def __init__(
        self, backend: EagerBackend, conditions: Conditions, branch: np.ndarray, text: np.ndarray, reward: np.ndarray,
        image: np.ndarray,
    ) -> None:  # fmt: skip
        self.backend, self.branch = backend, branch
        self.timesteps = backend.tensor(conditions["timesteps"])
        self.states = backend.tensor(conditions["encoder_hidden_states"][text]).to(backend.dtype)
        rows = {
            "reward_scores": reward, "reward_text_embeds": reward, "guidance_scales": reward, "feature_bias": image,
        }  # fmt: skip
        self.given: dict[str, torch.Tensor] = {
            name: backend.tensor(conditions[name][index[branch]]) for name, index in rows.items() if name in conditions
        }
        for name in self.given.keys() - {"reward_scores", "guidance_scales"}:  # which are embedded in float32
            self.given[name] = self.given[name].to(backend.dtype)

    def full(self, step: int, sample: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        backend = self.backend
        with backend.computing():
            branches = backend.tensor(sample[self.branch]).to(backend.dtype)
            noise = backend.unet(branches, self.timesteps[step], self.states, **self.given)
            return np.tensordot(guidance, to_numpy(noise), 1)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
