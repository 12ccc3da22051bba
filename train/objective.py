"""The training objective: the denoising loss of a batch, with random numbers drawn sample by sample.

Every random number but the reward layer's dropout comes from (seed, position of the sample in the
run), so a batch gives the same loss however many processes share it, and a resumed run goes on
exactly.

Shapes: B samples, latents h×w of Z channels, text length L, text width D.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel

from ..core.errors import MRCError
from ..model.unet import MRCUNet

HIDDEN_SCORES = (2.5, 2.5, 2.5)  # replace the scores of a hidden reward; an empty text replaces its text
AROUND = 2  # latents around a change that count as changed
CHANGED = 0.5  # a scaled latent that differs by more was edited; scaled latents have a standard deviation of 1


@dataclass(frozen=True)
class RewardBatch:
    """Scores `[B, 3]`, 0–5, and reward texts as for `Editor`; `empty_text` is one text."""

    scores: Tensor
    text: Tensor
    empty_text: Tensor


@dataclass(frozen=True)
class Batch:
    """A batch on the device; texts as for `Editor`.

    Attributes:
        source: latents `[B, Z, h, w]`, unscaled.
        edited: latents `[B, Z, h, w]`, scaled.
        changed: `[B, h, w]` of `changed_positions`.
        empty_text: one empty instruction.
        reward: in stage 2.
        features: of SmartEdit, as for `SmartEditor`; `text` is then the states of the image tokens.
    """

    source: Tensor
    edited: Tensor
    changed: Tensor
    text: Tensor
    empty_text: Tensor
    reward: RewardBatch | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch: noise `[B, Z, h, w]`, posterior `[B, Z, h, w]`, timesteps `[B]` int64,
    condition `[B]`, reward `[B]` and guidance `[B, 2]` uniform in 0…1."""

    noise: Tensor
    posterior: Tensor
    timesteps: Tensor
    condition: Tensor
    reward: Tensor
    guidance: Tensor


def draw(seed: int, positions: Tensor, shape: tuple[int, ...], timesteps: int, power: float = 1.0) -> Draws:
    """Random numbers of the samples at `positions` `[B]`; `shape` is one latent's.

    The probability of timestep t of `timesteps` is proportional to t to the (`power` - 1): uniform at 1.
    """
    rngs = [np.random.default_rng([seed, 1, int(position)]) for position in positions]

    def stack(draw_one: Callable[[np.random.Generator], np.ndarray | float]) -> Tensor:
        return torch.from_numpy(np.stack([draw_one(rng) for rng in rngs]))

    return Draws(
        noise=stack(lambda rng: rng.standard_normal(shape, dtype=np.float32)),
        posterior=stack(lambda rng: rng.standard_normal(shape, dtype=np.float32)),
        timesteps=stack(lambda rng: int(timesteps * rng.random() ** (1 / power))),
        condition=stack(lambda rng: rng.random(dtype=np.float32)),
        reward=stack(lambda rng: rng.random(dtype=np.float32)),
        guidance=stack(lambda rng: rng.random(2, dtype=np.float32)),
    )


class Editor(nn.Module):
    """Text encoder and U-Net in one module, so that data parallelism sees all trained weights."""

    def __init__(self, unet: MRCUNet, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(
        self, sample: Tensor, timesteps: Tensor, text: Tensor, scores: Tensor | None, reward_text: Tensor | None,
        scales: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The U-Net's prediction `[B, Z, h, w]` for `sample` `[B, 2Z, h, w]` and scores `[B, 3]`.

        Texts are token ids `[B, L]`, or encoded: text states `[B, L, D]`, reward texts pooled `[B, D]`. A student
        takes guidance scales `[B, 2]`.
        """
        pooled = self.pooled(reward_text)
        return self.unet(sample, timesteps, self.states(text), scores, pooled, guidance_scales=scales)

    def states(self, text: Tensor) -> Tensor:
        return text if text.is_floating_point() else self.text_encoder(text).last_hidden_state

    def pooled(self, reward_text: Tensor | None) -> Tensor | None:
        if reward_text is None or reward_text.is_floating_point():
            return reward_text
        texts, rows = torch.unique(reward_text, dim=0, return_inverse=True)
        return self.text_encoder(texts).pooler_output[rows]


def dropped(draws: Draws, dropout: float) -> tuple[Tensor, Tensor]:
    """Which samples lose their text and which their image `[B]` bool: one number, three bands."""
    no_text = draws.condition < 2 * dropout
    no_image = (draws.condition >= dropout) & (draws.condition < 3 * dropout)
    return no_text, no_image


def snr_weights(schedule: DDPMScheduler, timesteps: Tensor, gamma: float | None) -> Tensor:
    """Min-SNR weights `[B]` for the scheduler's prediction type; ones without gamma."""
    if gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    alphas = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas / (1 - alphas)
    # squared error of the prediction over that of the clean latents
    ratio = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return snr.clamp(max=gamma) / ratio[schedule.config.prediction_type]


def changed_positions(source: Tensor, edited: Tensor) -> Tensor:
    """1 where an edit changed the picture, and `AROUND` latents around, else 0: `[B, h, w]` of scaled latents
    `[B, Z, h, w]`. The gaps of a pattern count too, else the model would learn one plain colour."""
    changed = ((edited - source).abs().amax(1) > CHANGED).float()
    return F.max_pool2d(changed, 2 * AROUND + 1, stride=1, padding=AROUND)


def mean_where(errors: Tensor, positions: Tensor) -> Tensor:
    """Mean `[B]` of errors `[B, h, w]` over the positions that are 1; zero where there are none."""
    return (errors * positions).sum((1, 2)) / positions.sum((1, 2)).clamp(min=1)


def prediction_target(schedule: DDPMScheduler, edited: Tensor, draws: Draws) -> Tensor:
    """The model's target `[B, Z, h, w]`: noise, velocity or the edited latents."""
    match schedule.config.prediction_type:
        case "epsilon":
            return draws.noise
        case "v_prediction":
            return schedule.get_velocity(edited, draws.noise, draws.timesteps)
        case "sample":
            return edited
        case other:
            raise MRCError(f"prediction_type is {other!r} in the scheduler config; use epsilon, v_prediction or sample")


def sample_losses(
    editor: Callable[..., Tensor],
    schedule: DDPMScheduler,
    batch: Batch,
    draws: Draws,
    *,
    conditioning_dropout: float,
    reward_dropout: float,
    min_snr_gamma: float | None,
    change_weight: float,
) -> Tensor:
    """Loss of every sample `[B]`.

    Args:
        editor: an `Editor`, or for a batch with features a `SmartEditor`; perhaps wrapped.
        change_weight: factor of the mean over the changed positions, which is added to the mean over all.
    """
    no_text, no_image = dropped(draws, conditioning_dropout)
    noisy = schedule.add_noise(batch.edited, draws.noise, draws.timesteps)
    source = torch.where(no_image[:, None, None, None], 0.0, batch.source)
    sample, reward = torch.cat([noisy, source], dim=1), visible_reward(batch.reward, draws, reward_dropout)
    prediction = predict(editor, batch, sample, draws.timesteps, no_text, reward)
    target = prediction_target(schedule, batch.edited, draws)
    errors = F.mse_loss(prediction.float(), target, reduction="none").mean(1)
    losses = errors.mean((1, 2)) + change_weight * mean_where(errors, batch.changed)
    return losses * snr_weights(schedule, draws.timesteps, min_snr_gamma)


def predict(
    editor: Callable[..., Tensor], batch: Batch, sample: Tensor, timesteps: Tensor, no_text: Tensor,
    reward: tuple[Tensor | None, Tensor | None], scales: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """What an editor predicts `[B, Z, h, w]` for `sample` `[B, 2Z, h, w]` and the texts of a batch.

    Args:
        no_text: `[B]` bool, the samples that see the empty instruction.
        reward: of `visible_reward`.
        scales: `[B, 2]`, of a student.
    """
    student = {} if scales is None else {"scales": scales}
    if batch.features is not None:
        smart = batch.features, batch.empty_text, no_text
        return editor(sample, timesteps, batch.text, *reward, *smart, **student)
    text = torch.where(no_text.view(-1, *[1] * (batch.text.ndim - 1)), batch.empty_text, batch.text)
    return editor(sample, timesteps, text, *reward, **student)


def visible_reward(reward: RewardBatch | None, draws: Draws, dropout: float) -> tuple[Tensor | None, Tensor | None]:
    """Scores and reward texts, those of samples hidden by dropout replaced; None without rewards."""
    if reward is None:
        return None, None
    if not dropout:
        return reward.scores, reward.text
    hidden = (draws.reward < dropout)[:, None]
    scores = torch.where(hidden, torch.tensor(HIDDEN_SCORES, device=reward.scores.device), reward.scores)
    return scores, torch.where(hidden, reward.empty_text, reward.text)
