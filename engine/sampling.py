"""Samplers as tables of linear coefficients, computed in float64 by numpy.

Every step of Euler, Euler ancestral, DDIM (eta 0) and DPM-Solver++(2M) is linear in the latents x,
the predicted noise ε, fresh noise z, and the previous step's estimate d of the clean latents:

    x' = a·x + b·ε + c·d + e·z        then        d = p·x + q·ε

(DPM-Solver++ needs d: it cannot be recovered from the previous ε without the previous latents.)
Each function follows the diffusers scheduler of that name, its configuration keys and defaults.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..core.errors import MRCError


@dataclass(frozen=True)
class SamplerTable:
    """One row a step, S steps.

    Attributes:
        timesteps: `[S]`, the U-Net's time.
        input_scale: `[S]`, factor on the latents that enter the U-Net.
        coefficients: `[S, 4]`, factors of x, ε, d and z.
        denoised: `[S, 2]`, factors of x and ε in d.
        initial_scale: factor on the initial noise.
        ancestral: whether steps draw fresh noise.
    """

    timesteps: np.ndarray
    input_scale: np.ndarray
    coefficients: np.ndarray
    denoised: np.ndarray
    initial_scale: float
    ancestral: bool = False


def sampler_step(
    noise: np.ndarray,
    latents: np.ndarray,
    denoised: np.ndarray,
    fresh_noise: np.ndarray | None,
    coefficients: np.ndarray,
    denoised_coefficients: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The next latents and the estimate of the clean ones, float32 `[B, 4, h, w]` as all tensors here.

    Args:
        noise: the guided noise.
        fresh_noise: None for samplers that add none.
        coefficients: `[4]`, denoised_coefficients: `[2]`: a row of the table.
    """
    a, b, c, e = np.asarray(coefficients, dtype=np.float32)
    p, q = np.asarray(denoised_coefficients, dtype=np.float32)
    after = a * latents + b * noise + c * denoised
    return after if fresh_noise is None else after + e * fresh_noise, p * latents + q * noise


def alphas_cumprod(config: dict) -> np.ndarray:
    """Cumulative signal power ᾱ for every training timestep."""
    steps = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    schedule = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        raise MRCError("the scheduler config has trained_betas; only beta_start and beta_end are supported")
    if schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, steps) ** 2
    elif schedule == "linear":
        betas = np.linspace(start, end, steps)
    else:
        raise MRCError(f"beta_schedule is {schedule!r} in the scheduler config; use 'scaled_linear' or 'linear'")
    return np.cumprod(1 - betas)


def spaced_timesteps(config: dict, steps: int, default: str, *, extra: int = 0) -> np.ndarray:
    """Descending timesteps by `timestep_spacing` (arXiv 2305.08891, table 2).

    `extra=1` spaces one more step and drops the last, as DPM-Solver does.
    """
    total = config.get("num_train_timesteps", 1000)
    spacing = config.get("timestep_spacing", default)
    if spacing == "linspace":
        return np.linspace(0, total - 1, steps + extra)[::-1][:steps]
    if spacing == "leading":
        ascending = np.arange(steps + extra) * (total // (steps + extra)) + config.get("steps_offset", 0)
        return ascending[::-1][:steps].astype(float)
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps))[:steps] - 1
    raise MRCError(f"timestep_spacing is {spacing!r} in the scheduler config; use linspace, leading or trailing")


def sigmas_at(config: dict, timesteps: np.ndarray) -> np.ndarray:
    """Noise-to-signal ratios σ at (fractional) timesteps, and a final 0."""
    alphas = alphas_cumprod(config)
    sigmas = np.sqrt((1 - alphas) / alphas)
    return np.append(np.interp(timesteps, np.arange(len(sigmas)), sigmas), 0.0)


def euler_like(config: dict, steps: int, noise_share: Callable) -> SamplerTable:
    """Euler steps in σ space (arXiv 2206.00364); `noise_share` gives the σ that fresh noise replaces."""
    timesteps = spaced_timesteps(config, steps, "linspace")
    sigmas = sigmas_at(config, timesteps)
    here, after = sigmas[:-1], sigmas[1:]
    up = noise_share(here, after)
    down = np.sqrt(after**2 - up**2)
    zero, one = np.zeros(steps), np.ones(steps)
    leading = config.get("timestep_spacing", "linspace") == "leading"
    return SamplerTable(
        timesteps=timesteps,
        input_scale=1 / np.sqrt(here**2 + 1),
        coefficients=np.stack([one, down - here, zero, up], axis=1),
        denoised=np.stack([one, -here], axis=1),
        initial_scale=float(np.sqrt(here.max() ** 2 + 1) if leading else here.max()),
        ancestral=bool(up.any()),
    )


def euler(config: dict, steps: int) -> SamplerTable:
    """Euler's method (arXiv 2206.00364, algorithm 2 without churn)."""
    return euler_like(config, steps, lambda here, after: np.zeros_like(here))


def euler_ancestral(config: dict, steps: int) -> SamplerTable:
    """Euler's method with ancestral noise (k-diffusion, `sample_euler_ancestral`)."""
    return euler_like(config, steps, lambda here, after: np.sqrt(after**2 * (here**2 - after**2) / here**2))


def ddim(config: dict, steps: int) -> SamplerTable:
    """DDIM with eta 0 and no clipping (arXiv 2010.02502, formula 12)."""
    timesteps = np.round(spaced_timesteps(config, steps, "leading"))
    alphas = alphas_cumprod(config)
    before = timesteps - config.get("num_train_timesteps", 1000) // steps
    final = 1.0 if config.get("set_alpha_to_one", True) else alphas[0]
    here = alphas[timesteps.astype(int)]
    after = np.where(before >= 0, alphas[np.maximum(before, 0).astype(int)], final)
    x = np.sqrt(after / here)
    noise = np.sqrt(1 - after) - x * np.sqrt(1 - here)
    zero = np.zeros(steps)
    return SamplerTable(
        timesteps=timesteps,
        input_scale=np.ones(steps),
        coefficients=np.stack([x, noise, zero, zero], axis=1),
        denoised=np.stack([1 / np.sqrt(here), -np.sqrt((1 - here) / here)], axis=1),
        initial_scale=1.0,
    )


def dpmpp_2m(config: dict, steps: int) -> SamplerTable:
    """DPM-Solver++(2M), midpoint, first and last step of first order (arXiv 2211.01095, algorithm 2)."""
    timesteps = np.round(spaced_timesteps(config, steps, "linspace", extra=1))
    ratio = sigmas_at(config, timesteps)
    alpha = 1 / np.sqrt(ratio**2 + 1)
    sigma = ratio * alpha
    with np.errstate(divide="ignore"):
        lam = -np.log(ratio)  # log signal-to-noise; infinite at the end
    p, q = 1 / alpha[:-1], -sigma[:-1] / alpha[:-1]
    rows = []
    for i in range(steps):
        h = lam[i + 1] - lam[i]
        gain = -alpha[i + 1] * np.expm1(-h)  # of the data prediction
        first_order = i == 0 or i == steps - 1
        extrapolate = 0.0 if first_order else 0.5 * h / (lam[i] - lam[i - 1])
        now, previous = gain * (1 + extrapolate), -gain * extrapolate
        rows.append([sigma[i + 1] / sigma[i] + now * p[i], now * q[i], previous, 0.0])
    return SamplerTable(
        timesteps=timesteps,
        input_scale=np.ones(steps),
        coefficients=np.array(rows),
        denoised=np.stack([p, q], axis=1),
        initial_scale=1.0,
    )


SAMPLERS: dict[str, Callable[[dict, int], SamplerTable]] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
}


def sampler_of(config: dict) -> str:
    """The sampler of a `scheduler_config.json`; the released one where we have none of its class."""
    short = str(config.get("_class_name")).removesuffix("Scheduler").removesuffix("Discrete").lower()
    names = {name.replace("_", ""): name for name in SAMPLERS} | {"dpmsolvermultistep": "dpmpp_2m"}
    return names.get(short, "euler_ancestral")


def sampler_table(name: str, config: dict, steps: int) -> SamplerTable:
    """The table of sampler `name` for a `scheduler_config.json` and a number of steps.

    Raises:
        MRCError: an unknown name, or a step count outside 1…num_train_timesteps.
    """
    if not isinstance(name, str) or name not in SAMPLERS:
        raise MRCError(f"scheduler is {name!r}; choose one of {', '.join(SAMPLERS)}", argument="scheduler")
    limit = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= limit:
        raise MRCError(
            f"num_inference_steps is {steps!r}; give a whole number from 1 to {limit}", argument="num_inference_steps"
        )
    table = SAMPLERS[name](config, int(steps))
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in NOISE_OF:
        raise MRCError(f"prediction_type is {prediction!r} in the scheduler config; use {', '.join(NOISE_OF)}")
    return table_for(prediction, table, config)


# The noise ε of y = α·x₀ + σ·ε, the latents that enter the U-Net (α² + σ² = 1): factors of y and of what the
# model predicts, from α and σ
NOISE_OF: dict[str, Callable] = {
    "epsilon": lambda alpha, sigma: (0 * alpha, 1 + 0 * alpha),
    "v_prediction": lambda alpha, sigma: (sigma, alpha),  # v = α·ε - σ·x₀ (arXiv 2202.00512, appendix D)
    "sample": lambda alpha, sigma: (1 / sigma, -alpha / sigma),  # x₀
}


def table_for(prediction: str, table: SamplerTable, config: dict) -> SamplerTable:
    """The same steps for a model that predicts something else than ε: still linear."""
    ratio = sigmas_at(config, table.timesteps)[:-1]
    alpha = 1 / np.sqrt(ratio**2 + 1)
    of_input, of_output = NOISE_OF[prediction](alpha, ratio * alpha)

    def rows_for(rows: np.ndarray) -> np.ndarray:
        """Rows (of x, of ε, …) → (of x, of the prediction, …)."""
        noise = rows[:, 1]
        return np.column_stack([rows[:, 0] + noise * of_input * table.input_scale, noise * of_output, rows[:, 2:]])

    return replace(table, coefficients=rows_for(table.coefficients), denoised=rows_for(table.denoised))
