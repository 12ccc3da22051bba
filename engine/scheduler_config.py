"""The settings of `scheduler_config.json` that each sampler knows, with diffusers' names, defaults and meanings.

A setting that changes the steps and is not computed here is refused by name.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

from ..core.errors import MRCError
from ..core.schema import JsonObject

MAX_TIMESTEPS = 10_000  # of a training schedule; all models known have 1000
COMMON: JsonObject = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
SIGMAS: JsonObject = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
    "final_sigmas_type": "zero",
}
DEFAULTS: dict[str, JsonObject] = {  # by sampler, as the diffusers class of it has them
    "euler": COMMON | SIGMAS | {"interpolation_type": "linear", "timestep_type": "discrete"},
    "euler_ancestral": COMMON,
    "ddim": COMMON
    | {
        "timestep_spacing": "leading",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "thresholding": False,
    },
    "dpmpp_2m": COMMON
    | SIGMAS
    | {
        "solver_order": 2,
        "solver_type": "midpoint",
        "algorithm_type": "dpmsolver++",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "lambda_min_clipped": -math.inf,
        "thresholding": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "variance_type": None,
    },
    "lcm": COMMON
    | {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
        "clip_sample": False,
        "thresholding": False,
    },
}
RESPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")  # one at most
SAME_AS = {"deis": "dpmsolver++", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}  # to DPM-Solver++
CHOICES: dict[str, tuple[object, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2),
    "solver_type": ("midpoint", "heun"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "thresholding": (False,),  # needs a quantile of the latents: no linear step
    "use_flow_sigmas": (False,),  # for models that were trained by flow matching
    "use_dynamic_shifting": (False,),
    "variance_type": (None,),  # for models that predict the variance too
}


Holds = Callable[[Any], bool]


def between(low: float, high: float) -> Holds:
    return lambda value: is_number(value) and low < value < high


def is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_betas(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) > 1 and all(map(between(0, 1), value))


RANGES: dict[str, tuple[Holds, str]] = {
    "num_train_timesteps": (
        lambda value: type(value) is int and 2 <= value <= MAX_TIMESTEPS,
        "a whole number, 2 to 10000",
    ),
    "steps_offset": (lambda value: type(value) is int and 0 <= value <= MAX_TIMESTEPS, "a whole number, 0 to 10000"),
    "beta_start": (between(0, 1), "a number between 0 and 1"),
    "beta_end": (between(0, 1), "a number between 0 and 1"),
    "trained_betas": (lambda value: value is None or is_betas(value), "numbers between 0 and 1, or null"),
    "sigma_min": (lambda value: value is None or between(0, 1e6)(value), "a number between 0 and 1000000, or null"),
    "sigma_max": (lambda value: value is None or between(0, 1e6)(value), "a number between 0 and 1000000, or null"),
    "clip_sample_range": (between(0, 1e6), "a number between 0 and 1000000"),
    "original_inference_steps": (
        lambda value: type(value) is int and 1 <= value <= MAX_TIMESTEPS,
        "a whole number, 1 to num_train_timesteps",
    ),
    "timestep_scaling": (between(0, 1e6), "a number between 0 and 1000000"),
    "lambda_min_clipped": (lambda value: is_number(value) and value < 1e6, "a number below 1000000"),
}


def settings_of(sampler: str, config: JsonObject) -> JsonObject:
    """All settings that `sampler` knows: from the content of a `scheduler_config.json`, else diffusers' defaults.

    Settings of other diffusers classes are left out, as diffusers' `from_config` does.

    Raises:
        MRCError: a value that is not computed here, is out of range or contradicts another.
    """
    settings = {key: config.get(key, default) for key, default in DEFAULTS[sampler].items()}
    for key, value in settings.items():
        default = DEFAULTS[sampler][key]
        if key in RANGES:
            fits, allowed = RANGES[key]
            if not fits(value):
                raise refusal(key, value, allowed)
            continue
        if isinstance(default, bool):
            value = False if value is None else value
        elif isinstance(value, str):
            value = SAME_AS.get(value, value)
        choices = CHOICES.get(key, (True, False))
        if isinstance(value, list | dict) or value not in choices:
            raise refusal(key, value, " or ".join(map(repr, choices)))
        settings[key] = value
    used = [key for key in RESPACINGS if settings.get(key)]
    if len(used) > 1:
        raise MRCError(f"the scheduler config has {' and '.join(used)}; keep one")
    betas, total = settings["trained_betas"], settings["num_train_timesteps"]
    if betas is not None and len(betas) != total:
        raise refusal("trained_betas", f"{len(betas)} numbers", f"{total}, as num_train_timesteps says")
    return settings


def refusal(key: str, value: object, allowed: str) -> MRCError:
    return MRCError(
        f"{key} is {value!r} in the scheduler config, which is not computed here; change it to {allowed}, "
        "or choose another scheduler",
        argument="scheduler",
    )
