"""Samplers as tables of linear coefficients (`step_table`), computed in float64 by numpy.

Euler, Euler ancestral, DDIM (eta 0), DPM-Solver++ and LCM: each function follows the diffusers scheduler of that name
with all settings of `scheduler_config.py`. It gives the step in terms of the clean latents x₀ and the noise ε that the
prediction stands for.
"""

from collections.abc import Callable

import numpy as np

from ..core.errors import MRCError
from ..core.schema import JsonObject
from .noise_schedule import (
    alphas_cumprod,
    final_sigma,
    respaced,
    respaced_timesteps,
    spaced_timesteps,
    timesteps_at,
    training_sigmas,
)
from .scheduler_config import refusal, settings_of
from .step_table import SamplerTable, make_table


def euler_like(
    config: JsonObject, timesteps: np.ndarray, sigmas: np.ndarray, noise_share: np.ndarray | None = None
) -> SamplerTable:
    """Euler steps over S + 1 values of σ (arXiv 2206.00364), of which fresh noise replaces `noise_share`."""
    here, after = sigmas[:-1], sigmas[1:]
    zero = np.zeros_like(here)
    fresh = zero if noise_share is None else noise_share
    highest = sigmas.max()
    return make_table(
        config,
        timesteps,
        here,
        [zero + 1, np.sqrt(after**2 - fresh**2), zero, fresh],
        input_scale=1 / np.sqrt(here**2 + 1),
        initial_scale=float(np.hypot(highest, 1) if config["timestep_spacing"] == "leading" else highest),
        ancestral=noise_share is not None,
    )


def euler(config: JsonObject, steps: int) -> SamplerTable:
    """Euler's method (arXiv 2206.00364, algorithm 2 without churn)."""
    training = training_sigmas(config)
    timesteps = spaced_timesteps(config, steps)
    if config["interpolation_type"] == "log_linear":
        sigmas = np.geomspace(training[-1], training[0], steps + 1)
    else:
        sigmas = np.interp(timesteps, np.arange(len(training)), training)
    respacing = respaced(config, sigmas[0], sigmas[-1], steps)
    if respacing is not None:
        sigmas, timesteps = respacing, timesteps_at(respacing, training)
    sigmas = np.append(sigmas, final_sigma(config, training))[: steps + 1]
    if config["timestep_type"] == "continuous" and config["prediction_type"] == "v_prediction":
        timesteps = 0.25 * np.log(sigmas[:-1])
    return euler_like(config, timesteps, sigmas)


def euler_ancestral(config: JsonObject, steps: int) -> SamplerTable:
    """Euler's method with ancestral noise (k-diffusion, `sample_euler_ancestral`)."""
    training = training_sigmas(config)
    timesteps = spaced_timesteps(config, steps)
    sigmas = np.append(np.interp(timesteps, np.arange(len(training)), training), 0.0)
    here, after = sigmas[:-1], sigmas[1:]
    return euler_like(config, timesteps, sigmas, np.sqrt(after**2 * (here**2 - after**2) / here**2))


def ddim(config: JsonObject, steps: int) -> SamplerTable:
    """DDIM with eta 0 (arXiv 2010.02502, formula 12); where it clips x₀, ε stays as it was."""
    timesteps = np.round(spaced_timesteps(config, steps))
    alphas = alphas_cumprod(config)
    check_reach(config, timesteps, len(alphas))
    before = timesteps - config["num_train_timesteps"] // steps
    final = 1.0 if config["set_alpha_to_one"] else alphas[0]
    here = alphas[timesteps.astype(int)]
    after = np.where(before >= 0, alphas[np.maximum(before, 0).astype(int)], final)
    with np.errstate(divide="ignore"):
        sigmas = np.sqrt((1 - here) / here)
    zero, clip = np.zeros(steps), config["clip_sample"]
    weights = [np.sqrt(after), np.sqrt(1 - after), zero, np.sqrt(after) if clip else zero]
    return make_table(config, timesteps, sigmas, weights, clip=float(config["clip_sample_range"]) if clip else None)


def dpmpp_2m(config: JsonObject, steps: int) -> SamplerTable:
    """DPM-Solver++ of first or second order over its own steps (arXiv 2211.01095, algorithm 2 and appendix B)."""
    timesteps, ratio = dpm_steps(config, steps)
    alpha = 1 / np.sqrt(ratio**2 + 1)
    sigma = ratio * alpha
    with np.errstate(divide="ignore"):
        h = -np.diff(np.log(ratio))  # growth of the log signal-to-noise ratio; infinite at σ = 0
    sde = config["algorithm_type"] == "sde-dpmsolver++"
    k = 2 * h if sde else h
    if config["solver_type"] == "midpoint":
        gain = -0.5 * np.expm1(-k)
    else:
        gain = 1 + np.divide(np.expm1(-k), k, out=-np.ones_like(k), where=k > 0)
    rows = len(timesteps)
    few = config["lower_order_final"] and rows < 15
    first_order_final = config["euler_at_final"] or few or config["final_sigmas_type"] == "zero"
    extrapolate = np.zeros(rows)
    if config["solver_order"] == 2:
        second = slice(1, rows - 1 if first_order_final else rows)
        extrapolate[second] = (alpha[1:] * gain * h)[second] / h[:-1][: second.stop - 1]
    zero = np.zeros(rows)
    kept = np.exp(-h) if sde else zero + 1  # of the noise; fresh noise replaces the rest
    weights = [
        alpha[1:] + extrapolate,
        sigma[1:] * kept,
        -extrapolate,
        sigma[1:] * np.sqrt(-np.expm1(-2 * h)) if sde else zero,
    ]
    return make_table(config, timesteps, ratio[:-1], weights, ancestral=sde)


def dpm_steps(config: JsonObject, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps `[S]` and σ `[S + 1]` of DPM-Solver++."""
    training = training_sigmas(config)
    respacing = respaced(config, training[-1], training[0], steps)
    if respacing is not None:
        return respaced_timesteps(config, steps), np.append(respacing, final_sigma(config, training))
    least_signal = np.searchsorted(-np.log(training[::-1]), config["lambda_min_clipped"])
    last = config["num_train_timesteps"] - int(least_signal)
    timesteps = np.round(spaced_timesteps(config, steps, extra=1, last=last))
    check_reach(config, timesteps, last)
    sigmas = np.interp(timesteps, np.arange(len(training)), training)
    return timesteps, np.append(sigmas, final_sigma(config, training))


LCM_SIGMA_DATA = 0.5  # of the boundary scalings, arXiv 2310.04378, §4.1


def lcm(config: JsonObject, steps: int) -> SamplerTable:
    """Multistep sampling of a latent consistency model (arXiv 2310.04378, algorithm 3)."""
    trained, total = config["original_inference_steps"], config["num_train_timesteps"]
    if config["clip_sample"]:
        raise refusal("clip_sample", True, "False")  # the table has one z, and LCM needs it for its noise
    if not steps <= trained <= total:
        raise MRCError(
            f"num_inference_steps is {steps} and original_inference_steps {trained} in the scheduler config; the first "
            f"may be at most the second, and that at most {total}",
            argument="num_inference_steps",
        )
    known = np.arange(1, trained + 1) * (total // trained) - 1
    timesteps = known[::-1][np.floor(np.linspace(0, trained, steps, endpoint=False)).astype(int)]
    alphas = alphas_cumprod(config)
    here, after = alphas[timesteps], np.append(alphas[timesteps[1:]], 1.0)
    scaled = timesteps * config["timestep_scaling"]
    skip = LCM_SIGMA_DATA**2 / (scaled**2 + LCM_SIGMA_DATA**2)
    out = scaled / np.sqrt(scaled**2 + LCM_SIGMA_DATA**2)
    signal = np.sqrt(after)
    weights = [
        signal * (out + skip * np.sqrt(here)),
        signal * skip * np.sqrt(1 - here),
        np.zeros(steps),
        np.sqrt(1 - after),
    ]
    with np.errstate(divide="ignore"):
        sigmas = np.sqrt((1 - here) / here)
    return make_table(config, timesteps.astype(float), sigmas, weights, ancestral=True)


def check_reach(config: JsonObject, timesteps: np.ndarray, count: int) -> None:
    """Refuse so many steps that some repeat or begin beyond the last training timestep."""
    if timesteps[0] >= count or np.any(np.diff(timesteps) >= 0):
        raise MRCError(
            f"num_inference_steps is {len(timesteps)}, too many for timestep_spacing {config['timestep_spacing']!r} "
            f"and steps_offset {config['steps_offset']} over {count} timesteps; give fewer steps",
            argument="num_inference_steps",
        )


SAMPLERS: dict[str, Callable[[JsonObject, int], SamplerTable]] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "lcm": lcm,
}


def sampler_of(config: dict) -> str | None:
    """The sampler of a `scheduler_config.json`; None for a diffusers class that is none of ours."""
    short = str(config.get("_class_name")).removesuffix("Scheduler").removesuffix("Discrete").lower()
    names = {name.replace("_", ""): name for name in SAMPLERS} | {"dpmsolvermultistep": "dpmpp_2m"}
    return names.get(short)


def sampler_table(name: str, config: dict, steps: int) -> SamplerTable:
    """The table of sampler `name` for a `scheduler_config.json` and a number of steps.

    Raises:
        MRCError: an unknown name, settings that are not computed here, or a step count that they do not allow.
    """
    check_sampler(name)
    settings = settings_of(name, config)
    check_steps(steps, settings["num_train_timesteps"])
    return SAMPLERS[name](settings, int(steps))


def check_sampler(name: object) -> None:
    if not isinstance(name, str) or name not in SAMPLERS:
        raise MRCError(f"scheduler is {name!r}; choose one of {', '.join(SAMPLERS)}", argument="scheduler")


def check_steps(steps: object, limit: int) -> None:
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or not 1 <= steps <= limit:
        raise MRCError(
            f"num_inference_steps is {steps!r:.40}; give a whole number from 1 to {limit}",
            argument="num_inference_steps",
        )
