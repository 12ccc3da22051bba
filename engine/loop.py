"""The denoising loop. It knows nothing of backends and tiers: it calls one function that predicts the noise."""

from collections.abc import Callable
from itertools import groupby

import numpy as np
from tqdm import tqdm

from ..core.errors import MRCError
from .failures import computing
from .noise import normal
from .plan import Plan
from .step_table import SamplerTable, clipping, sampler_step

Predict = Callable[[int, np.ndarray], np.ndarray]  # step, sample `[P, 2Z, h, w]` → guided noise `[B, Z, h, w]`
OnStep = Callable[[int, np.ndarray], np.ndarray | None]


def denoise(
    predict: Predict,
    plan: Plan,
    table: SamplerTable,
    source: np.ndarray,
    generators: list[np.random.RandomState],
    on_step: OnStep,
) -> np.ndarray:
    """Denoise B images from source latents `[B, Z, h, w]` to final latents `[B, Z, h, w]`, both float32.

    Args:
        generators: one an image, for its initial and fresh noise.
        on_step: called with the step and the latents after it; may return latents to go on with.

    Raises:
        MRCError: noise that is not finite, or latents of another shape from `on_step`.
    """
    latents, visible = start(plan, table, source, generators)
    denoised = np.zeros_like(latents)
    steps = len(table.timesteps)
    for step in tqdm(range(steps), desc="edit", unit="step", leave=False, disable=None):
        scaled = latents[plan.image] * np.float32(table.input_scale[step])
        phase = f"unet at step {step + 1} of {steps}"
        with computing(phase):
            noise = predict(step, np.concatenate([scaled, visible], axis=1))
        check_finite(noise, phase)
        fresh = step_noise(table, generators, source.shape)
        if table.clip is not None:
            fresh = clipping(table, step, noise, latents)
        latents, denoised = sampler_step(
            noise, latents, denoised, fresh, table.coefficients[step], table.denoised[step]
        )
        replaced = on_step(step, latents)
        if replaced is not None:
            latents = check_latents(replaced, source.shape)
    return latents


def start(
    plan: Plan, table: SamplerTable, source: np.ndarray, generators: list[np.random.RandomState]
) -> tuple[np.ndarray, np.ndarray]:
    """Initial latents `[B, Z, h, w]`, and the source latents that each input sees, `[P, Z, h, w]`."""
    latents = draw(generators, source.shape) * np.float32(table.initial_scale)
    return latents, np.where(plan.sees_image[:, None, None, None], source[plan.image], np.float32(0))


def step_noise(
    table: SamplerTable, generators: list[np.random.RandomState], shape: tuple[int, ...]
) -> np.ndarray | None:
    """Fresh noise for a step; None for samplers that add none, which draw nothing either."""
    return draw(generators, shape) if table.ancestral else None


def draw(generators: list[np.random.RandomState], shape: tuple[int, ...]) -> np.ndarray:
    """One tensor an image, each from its own generator, so that an image is the same in every batch.

    A generator that several in a row share draws them at once, as in diffusers.
    """
    rows = [list(row) for _, row in groupby(generators, key=id)]
    return np.concatenate([normal(row[0], (len(row), *shape[1:])) for row in rows])


def check_finite(array: np.ndarray, phase: str) -> None:
    if not np.isfinite(array).all():
        raise MRCError(f"{phase} gave NaN or infinity; export with --dtype float32, or check the checkpoint")


def check_latents(latents: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Latents that a callback returned, as float32."""
    try:
        given = np.array(latents, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise MRCError(f"the callback returned {latents!r:.60} as latents; give an array {shape}") from None
    if given.shape != shape:
        raise MRCError(f"the callback returned latents {given.shape}; give {shape}")
    check_finite(given, "the callback")
    return given
