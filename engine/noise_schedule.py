"""The noise schedule a model was trained with, and the timesteps and noise levels that a sampler visits of it.

Everything is numpy in float64. ᾱ is the share of the signal's power, σ = √((1 - ᾱ) / ᾱ) the noise-to-signal ratio.
`config` is what `scheduler_config.settings_of` gives.
"""

import math
from collections.abc import Callable

import numpy as np

from ..core.errors import MRCError
from ..core.schema import JsonObject

NEARLY_ZERO = 2.0**-24  # ᾱ in place of 0, where σ would be infinite; diffusers' value
LEAST_SIGNAL = 1e-20  # ᾱ
KARRAS_RHO = 7.0  # arXiv 2206.00364, formula 5
BETA = 0.6  # both parameters of the beta distribution in arXiv 2407.12173


def training_betas(config: JsonObject, spaced: Callable[[float, float, int], np.ndarray] = np.linspace) -> np.ndarray:
    """β of every training timestep; `spaced` gives evenly spaced numbers."""
    steps, start, end = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        return np.array(config["trained_betas"], dtype=np.float64)
    if config["beta_schedule"] == "linear":
        return spaced(start, end, steps)
    if config["beta_schedule"] == "scaled_linear":
        return spaced(start**0.5, end**0.5, steps) ** 2
    # cosine, arXiv 2102.09672, formula 17
    signal = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999)


def alphas_cumprod(config: JsonObject) -> np.ndarray:
    """ᾱ of every training timestep; the last one is 0 with `rescale_betas_zero_snr`.

    Raises:
        MRCError: betas so small or great that a timestep has no noise, or no signal that float64 could tell.
    """
    betas = training_betas(config)
    alphas = np.cumprod(1 - betas)
    if alphas[0] == 1 or alphas[-1] < LEAST_SIGNAL:
        raise MRCError(
            f"the betas in the scheduler config are {betas[0]:.2g} to {betas[-1]:.2g} over {len(betas)} timesteps: the "
            "first adds no noise, or the last leaves no signal; restore the original file",
            argument="scheduler",
        )
    return without_last_signal(alphas) if config["rescale_betas_zero_snr"] else alphas


def without_last_signal(alphas: np.ndarray) -> np.ndarray:
    """ᾱ rescaled so that the last one is 0 (arXiv 2305.08891, algorithm 1)."""
    root = np.sqrt(alphas)
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def training_sigmas(config: JsonObject) -> np.ndarray:
    """σ of every training timestep, ascending and finite."""
    alphas = alphas_cumprod(config)
    if config["rescale_betas_zero_snr"]:
        alphas[-1] = NEARLY_ZERO
    return np.sqrt((1 - alphas) / alphas)


def respaced_timesteps(config: JsonObject, steps: int) -> np.ndarray:
    """The whole timesteps that diffusers' DPM-Solver++ takes for `respaced` σ: it rounds some, and truncates others.

    The last bit of its float32 logarithms decides whether the highest σ is at the last timestep or just before it,
    which is a timestep less. So all is computed here as there.
    """
    training = float32_sigmas(config)
    known = np.log(training)
    ends = np.exp(known.astype(float)) if config["use_lu_lambdas"] else training
    sigmas = respaced(config, float(ends[-1]), float(ends[0]), steps)
    assert sigmas is not None
    sought = np.log(sigmas)
    low = np.minimum(np.cumsum(sought[:, None] >= known, axis=1).argmax(axis=1), len(known) - 2)
    share = ((known[low] - sought) / (known[low] - known[low + 1])).clip(0, 1)
    timesteps = (1 - share) * low + share * (low + 1)
    rounds = config["use_karras_sigmas"] or config["use_lu_lambdas"]
    return np.round(timesteps) if rounds and config["beta_schedule"] != "squaredcos_cap_v2" else np.floor(timesteps)


def float32_sigmas(config: JsonObject) -> np.ndarray:
    """σ of every training timestep as PyTorch computes it in float32: the same but for the last bit of 6 square roots
    in 1000, which its library does not round to the nearest."""
    alphas = float32_products(1 - training_betas(config, float32_spaced).astype(np.float32))
    if config["rescale_betas_zero_snr"]:
        signal = without_last_signal(alphas)
        betas = 1 - np.append(signal[:1], signal[1:] / signal[:-1])
        alphas = float32_products(1 - betas)
        alphas[-1] = NEARLY_ZERO
    return np.sqrt((1 - alphas) / alphas)


def float32_products(values: np.ndarray) -> np.ndarray:
    """torch.cumprod, which multiplies in float64 and rounds what it stores."""
    return np.cumprod(values.astype(np.float64)).astype(np.float32)


def float32_spaced(start: float, end: float, count: int) -> np.ndarray:
    """torch.linspace: multiples of a rounded step, added to the nearer end and rounded once."""
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(max(1, count - 1)))
    index = np.arange(count)
    upwards, downwards = float(first) + step * index, float(last) - step * (count - 1 - index)
    return np.where(index < count // 2, upwards, downwards).astype(np.float32)


def spaced_timesteps(config: JsonObject, steps: int, *, extra: int = 0, last: int | None = None) -> np.ndarray:
    """Descending timesteps by `timestep_spacing` (arXiv 2305.08891, table 2).

    For 62 of the counts to 1000 diffusers' rounding takes one step too many with "trailing", at timestep -1; not here.

    Args:
        extra: 1 spaces one more step and drops the last, as DPM-Solver does.
        last: number of the timesteps to space; all by default.
    """
    total = config["num_train_timesteps"]
    last = last or total
    spacing = config["timestep_spacing"]
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps + extra)[::-1][:steps]
    if spacing == "leading":
        ascending = np.arange(steps + extra) * (last // (steps + extra)) + config["steps_offset"]
        return ascending[::-1][:steps].astype(float)
    return np.round(np.arange(last, 0, -total / steps))[:steps] - 1


def timesteps_at(sigmas: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The fractional timesteps at which the training schedule has these σ."""
    return np.interp(np.log(sigmas), np.log(training), np.arange(len(training)))


def respaced(config: JsonObject, highest: float, lowest: float, steps: int) -> np.ndarray | None:
    """σ of `steps` steps from `highest` to `lowest`, or to the config's own bounds; None where timesteps space them."""
    if config.get("use_lu_lambdas"):  # arXiv 2206.00927: even in the logarithm
        return np.geomspace(highest, lowest, steps)
    highest, lowest = config["sigma_max"] or highest, config["sigma_min"] or lowest
    if config["use_karras_sigmas"]:
        ends = highest ** (1 / KARRAS_RHO), lowest ** (1 / KARRAS_RHO)
        return np.linspace(*ends, steps) ** KARRAS_RHO
    if config["use_exponential_sigmas"]:
        return np.geomspace(highest, lowest, steps)
    if config["use_beta_sigmas"]:
        return lowest + (highest - lowest) * beta_quantile(np.linspace(1, 0, steps))
    return None


def final_sigma(config: JsonObject, training: np.ndarray) -> float:
    return float(training[0]) if config.get("final_sigmas_type") == "sigma_min" else 0.0


def beta_quantile(shares: np.ndarray) -> np.ndarray:
    """Quantiles of the symmetric beta distribution, by bisection of its power series."""
    low, high = np.zeros_like(shares), np.ones_like(shares)
    for _ in range(60):
        middle = (low + high) / 2
        below = beta_share(middle) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where((shares == 0) | (shares == 1), shares, (low + high) / 2)


def beta_share(x: np.ndarray) -> np.ndarray:
    """The distribution function I_x(BETA, BETA) (DLMF 8.17.7), by I_x = 1 - I_(1-x) above one half."""
    small = np.minimum(x, 1 - x)
    factor, total = small**BETA, np.zeros_like(x)
    for n in range(64):  # each term is at most half of the one before
        total += factor / (BETA + n)
        factor = factor * small * (n + 1 - BETA) / (n + 1)
    share = total * math.gamma(2 * BETA) / math.gamma(BETA) ** 2
    return np.where(x <= 0.5, share, 1 - share)
