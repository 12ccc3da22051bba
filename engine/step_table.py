"""A sampler's steps as a table of linear coefficients, and one step by it.

Every step of every sampler here is linear in the latents x, what the model predicts (m), fresh noise z, and the
previous step's estimate d of the clean latents:

    x' = a·x + b·m + c·d + e·z        then        d = p·x + q·m

(DPM-Solver++ needs d: it cannot be recovered from the previous prediction without the previous latents.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..core.errors import MRCError
from ..core.schema import JsonObject

Array = TypeVar("Array")  # of numpy or PyTorch


@dataclass(frozen=True)
class SamplerTable:
    """One row a step, S steps.

    Attributes:
        timesteps: `[S]`, the U-Net's time.
        input_scale: `[S]`, factor on the latents that enter the U-Net.
        coefficients: `[S, 4]`, factors of x, m, d and z.
        denoised: `[S, 2]`, factors of x and m in d.
        initial_scale: factor on the initial noise.
        ancestral: whether steps draw fresh noise.
        clip: limit of x₀ where the sampler clips it; z is then what `clipping` gives, not noise.
    """

    timesteps: np.ndarray
    input_scale: np.ndarray
    coefficients: np.ndarray
    denoised: np.ndarray
    initial_scale: float
    ancestral: bool = False
    clip: float | None = None


def sampler_step(
    noise: np.ndarray,
    latents: np.ndarray,
    denoised: np.ndarray,
    fresh_noise: np.ndarray | None,
    coefficients: np.ndarray,
    denoised_coefficients: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The next latents and the estimate of the clean ones, float32 `[B, Z, h, w]` as all tensors here.

    Args:
        noise: the guided noise.
        fresh_noise: z; None where there is none.
        coefficients: `[4]`, denoised_coefficients: `[2]`: a row of the table.
    """
    a, b, c, e = np.asarray(coefficients, dtype=np.float32)
    p, q = np.asarray(denoised_coefficients, dtype=np.float32)
    after = a * latents + b * noise + c * denoised
    return after if fresh_noise is None else after + e * fresh_noise, p * latents + q * noise


def clipping(table: SamplerTable, step: int, noise: Array, latents: Array) -> Array:
    """What clipping x₀ to ±`table.clip` adds to it, on numpy arrays or tensors."""
    p, q = map(float, table.denoised[step])
    clean: Any = p * latents + q * noise  # type: ignore[operator]
    limit = table.clip or 0.0
    return clean.clip(-limit, limit) - clean


def make_table(
    config: JsonObject,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    weights: list[np.ndarray],
    *,
    input_scale: np.ndarray | None = None,
    initial_scale: float = 1.0,
    ancestral: bool = False,
    clip: float | None = None,
) -> SamplerTable:
    """The table of steps that are given as weights of x₀, ε, d and z.

    Args:
        sigmas: `[S]`, σ of the latents that enter the U-Net; infinite where they are noise alone.
        input_scale: see `SamplerTable`; 1 by default.
    """
    scale = np.ones(len(timesteps)) if input_scale is None else input_scale
    alpha = 1 / np.sqrt(sigmas**2 + 1)
    with np.errstate(invalid="ignore"):
        sigma = np.where(alpha > 0, sigmas * alpha, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        p, q, r, s = (factor + np.zeros_like(alpha) for factor in READINGS[config["prediction_type"]](alpha, sigma))
        clean, noise, previous, fresh = weights
        a, b = (clean * p + noise * r) * scale, clean * q + noise * s
    coefficients, denoised = np.stack([a, b, previous, fresh], axis=1), np.stack([p * scale, q], axis=1)
    if not np.isfinite(coefficients).all() or not np.isfinite(denoised).all():
        raise MRCError(
            "the scheduler config has rescale_betas_zero_snr, so the first step sees noise alone, from which a model "
            "that predicts the noise cannot begin; set prediction_type to v_prediction if the model was trained so, "
            "or timestep_spacing to leading",
            argument="scheduler",
        )
    return SamplerTable(timesteps, scale, coefficients, denoised, initial_scale, ancestral, clip)


# What the model predicts of y = α·x₀ + σ·ε, the latents that enter the U-Net (α² + σ² = 1): factors of y and of the
# prediction in x₀, then in ε
READINGS: dict[str, Callable] = {
    "epsilon": lambda alpha, sigma: (1 / alpha, -sigma / alpha, 0, 1),
    "v_prediction": lambda alpha, sigma: (alpha, -sigma, sigma, alpha),  # α·ε - σ·x₀ (arXiv 2202.00512, appendix D)
    "sample": lambda alpha, sigma: (0, 1, 1 / sigma, -alpha / sigma),
}
