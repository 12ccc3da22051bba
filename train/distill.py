"""Distillation: a teacher of many steps and three branches becomes a student of few steps and one branch.

Latent consistency distillation (arXiv 2310.04378): the student maps latents at any timestep to the end of the
teacher's guided probability-flow path. It is held against its own average one solver step further down, and at
timestep 0 it is the identity. Both guidance scales are drawn anew for each sample and embedded, so the student keeps
them; rewards stay conditions, so it keeps those too.

Shapes: B samples, latents h×w of Z channels.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, LCMScheduler
from torch import Tensor

from ..core.defaults import Defaults
from ..core.errors import MRCError
from ..engine.step_table import READINGS
from ..model.checkpoint import Checkpoint
from ..model.scheduler import scheduler_config
from .config import TrainConfig
from .lora import remove_lora
from .objective import Batch, Draws, Editor, RewardBatch, dropped, mean_where, predict, visible_reward

SOLVER_STEPS = 50  # of DDIM, the teacher's path; `original_inference_steps` of the LCM sampler
STUDENT_STEPS = 4  # what a student takes by default
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # of the boundary scalings, as in the LCM sampler
HUBER = 0.001  # where the loss turns from squares to magnitudes


@dataclass(frozen=True)
class Distillation:
    """The two frozen editors that the student learns from; each has the student's structure.

    Attributes:
        teacher: as it was loaded.
        target: the student with its averaged weights; they are `TrainState.average`'s own tensors.
    """

    teacher: Editor
    target: Editor

    @property
    def editors(self) -> tuple[Editor, Editor]:
        return self.teacher, self.target


def student_of(checkpoint: Checkpoint, config: TrainConfig) -> Checkpoint:
    """The checkpoint as a student that knows nothing of guidance yet; its U-Net changes in place.

    Raises:
        MRCError: it is no editor, has no rewards to weigh samples by, or a scheduler that is not distilled here.
    """
    unet, scheduler, own = checkpoint.unet, checkpoint.scheduler.config, checkpoint.defaults
    if unet.config.in_channels == unet.config.out_channels:
        raise MRCError(f"{config.init} makes images from texts; distil an editor, which --stage 1 and 2 train")
    if (prediction := scheduler.get("prediction_type", "epsilon")) not in READINGS:
        raise MRCError(f"prediction_type is {prediction!r} in the scheduler config; use {', '.join(READINGS)}")
    if scheduler.num_train_timesteps % SOLVER_STEPS:
        raise MRCError(
            f"num_train_timesteps is {scheduler.num_train_timesteps} in the scheduler config; distillation needs a "
            f"multiple of {SOLVER_STEPS}"
        )
    if config.reward_weighting and not unet.rewards:
        raise MRCError(f"reward_weighting is {config.reward_weighting} and {config.init} has no rewards; leave it out")
    unet.embed_guidance()
    betas = {name: scheduler[name] for name in ("beta_start", "beta_end", "beta_schedule") if name in scheduler}
    settings = scheduler_config(checkpoint.scheduler) | betas  # the LCM sampler has other defaults
    settings |= {"clip_sample": False, "original_inference_steps": SOLVER_STEPS, "timestep_scaling": TIMESTEP_SCALING}
    defaults = Defaults(
        "lcm", STUDENT_STEPS, min(own.guidance_scale, config.guidance_max),
        min(own.image_guidance_scale, config.image_guidance_max), config.guidance_max, config.image_guidance_max,
    )  # fmt: skip
    return dataclasses.replace(checkpoint, scheduler=LCMScheduler.from_config(settings), defaults=defaults)


def open_distillation(editor: Editor) -> Distillation:
    """Teacher and target of a student that has not been trained yet: they share what it does not train."""
    shared = {id(parameter): parameter for parameter in editor.parameters() if not parameter.requires_grad}
    teacher, target = (copy.deepcopy(editor, dict(shared)).requires_grad_(False).eval() for _ in range(2))
    remove_lora(teacher.unet)
    return Distillation(teacher, target)


def averaged(editor: Editor, target: Editor) -> list[torch.nn.Parameter]:
    """The parameters of `target` in the place of those that `editor` trains, in the same order."""
    return [target.get_parameter(name) for name, parameter in editor.named_parameters() if parameter.requires_grad]


def distill_losses(
    student: Callable[..., Tensor],
    distillation: Distillation,
    schedule: DDPMScheduler,
    batch: Batch,
    draws: Draws,
    config: TrainConfig,
) -> Tensor:
    """Loss of every sample `[B]`.

    Args:
        student: an `Editor` or `SmartEditor`, perhaps wrapped, whose U-Net embeds the guidance scales.
    """
    teacher, target = distillation.teacher, distillation.target
    no_text, no_image = dropped(draws, config.conditioning_dropout)
    start, end = solver_timesteps(draws.timesteps, schedule.config.num_train_timesteps)
    noisy = schedule.add_noise(batch.edited, draws.noise, start)
    source = torch.where(no_image[:, None, None, None], 0.0, batch.source)
    scales = drawn_scales(draws.guidance, config.guidance_max, config.image_guidance_max)
    with torch.no_grad():
        batch = encoded(target, batch)
        reward = visible_reward(batch.reward, draws, config.reward_dropout)
        guided = guided_prediction(teacher, batch, noisy, source, start, no_text, reward, scales)
        further = solver_step(schedule, guided, noisy, start, end)
        sample = torch.cat([further, source], dim=1)
        wanted = predict(target, batch, sample, end, no_text, reward, scales).float()
        wanted = consistency(schedule, wanted, further, end)
    sample = torch.cat([noisy, source], dim=1)
    found = predict(student, batch, sample, start, no_text, reward, scales).float()
    errors = huber(consistency(schedule, found, noisy, start) - wanted).mean(1)
    losses = errors.mean((1, 2)) + config.change_weight * mean_where(errors, batch.changed)
    return losses * score_weights(batch, config.reward_weighting)


def solver_timesteps(timesteps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Drawn timesteps `[B]` of `count` → those of the solver that they fall on, and those one solver step later."""
    skipped = count // SOLVER_STEPS
    start = (timesteps // skipped + 1) * skipped - 1
    return start, (start - skipped).clamp(min=0)


def drawn_scales(uniform: Tensor, most: float, image_most: float) -> Tensor:
    """Uniform numbers `[B, 2]` in 0…1 → guidance scales `[B, 2]` from 1 to each limit."""
    return 1 + uniform * (torch.tensor([most, image_most], device=uniform.device) - 1)


def encoded(editor: Editor, batch: Batch) -> Batch:
    """The batch with all texts encoded, once for all forward passes."""
    reward = batch.reward
    if reward is not None:
        text, empty_text = editor.pooled(reward.text), editor.pooled(reward.empty_text)
        assert text is not None and empty_text is not None
        reward = RewardBatch(reward.scores, text, empty_text)
    text, empty_text = editor.states(batch.text), editor.states(batch.empty_text)
    return dataclasses.replace(batch, text=text, empty_text=empty_text, reward=reward)


def guided_prediction(
    teacher: Callable[..., Tensor], batch: Batch, noisy: Tensor, source: Tensor, timesteps: Tensor, no_text: Tensor,
    reward: tuple[Tensor | None, Tensor | None], scales: Tensor,
) -> Tensor:  # fmt: skip
    """The teacher's guided prediction (docs/mathematics.md). Branches that weigh nothing in the whole batch are not
    computed."""

    def branch(no_text: Tensor, source: Tensor) -> Tensor:
        sample = torch.cat([noisy, source], dim=1)
        return predict(teacher, batch, sample, timesteps, no_text, reward, scales).float()

    empty = torch.ones_like(no_text)
    guidance, image_guidance = scales.T[..., None, None, None]
    weighted = (
        (guidance, no_text, source), (image_guidance - guidance, empty, source),
        (1 - image_guidance, empty, torch.zeros_like(source)),
    )  # fmt: skip
    return sum((weight * branch(*seen) for weight, *seen in weighted if weight.any()), torch.zeros_like(noisy))


def clean_and_noise(
    schedule: DDPMScheduler, prediction: Tensor, noisy: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """The clean latents and the noise that a prediction stands for."""
    signal, sigma = levels(schedule, timesteps)
    p, q, r, s = READINGS[schedule.config.prediction_type](signal, sigma)
    return p * noisy + q * prediction, r * noisy + s * prediction


def levels(schedule: DDPMScheduler, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of signal and noise at timesteps `[B]`, `[B, 1, 1, 1]` each."""
    alphas = schedule.alphas_cumprod.to(timesteps.device)[timesteps][:, None, None, None]
    return alphas.sqrt(), (1 - alphas).sqrt()


def solver_step(schedule: DDPMScheduler, guided: Tensor, noisy: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Latents at `end` of the path through `noisy` at `start`: one step of DDIM."""
    clean, noise = clean_and_noise(schedule, guided, noisy, start)
    signal, sigma = levels(schedule, end)
    return signal * clean + sigma * noise


def consistency(schedule: DDPMScheduler, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """The end of the path that a prediction stands for; at timestep 0 it is `noisy`."""
    clean, _ = clean_and_noise(schedule, prediction, noisy, timesteps)
    scaled = timesteps[:, None, None, None] * TIMESTEP_SCALING
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total * noisy + scaled / total.sqrt() * clean


def huber(errors: Tensor) -> Tensor:
    """Pseudo-Huber loss: squares of small errors, magnitudes of large ones."""
    return (errors**2 + HUBER**2).sqrt() - HUBER


def score_weights(batch: Batch, power: float) -> Tensor:
    """Weights `[B]`: the mean of the three scores over 5, to the power; ones at power 0."""
    if not power:
        return torch.ones(len(batch.edited), device=batch.edited.device)
    assert batch.reward is not None
    return (batch.reward.scores.mean(1) / 5) ** power
