"""The settings each sampler knows are those of the diffusers class, and none is left aside in silence."""

import inspect
import math

import diffusers
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.scheduler_config import DEFAULTS, settings_of

KINDS = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
}
OF_REFUSED = {
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
}  # read with those alone
READ_UNDECLARED = {"sigma_min", "sigma_max"}  # diffusers reads them of any config


@pytest.mark.parametrize("sampler", KINDS)
def test_names_and_defaults_are_those_of_diffusers(sampler):
    parameters = inspect.signature(KINDS[sampler].__init__).parameters
    theirs = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    ours = {name: default for name, default in DEFAULTS[sampler].items() if name in theirs}
    assert theirs == ours | {name: theirs[name] for name in OF_REFUSED & theirs.keys()}
    assert DEFAULTS[sampler].keys() - theirs.keys() <= READ_UNDECLARED
    assert settings_of(sampler, {}) == DEFAULTS[sampler]


@pytest.mark.parametrize(
    ("sampler", "change"),
    [
        ("ddim", {"thresholding": True}),
        ("dpmpp_2m", {"thresholding": True}),
        ("dpmpp_2m", {"solver_order": 3}),
        ("dpmpp_2m", {"algorithm_type": "dpmsolver"}),
        ("dpmpp_2m", {"algorithm_type": "sde-dpmsolver"}),
        ("dpmpp_2m", {"use_flow_sigmas": True}),
        ("dpmpp_2m", {"use_dynamic_shifting": True}),
        ("dpmpp_2m", {"variance_type": "learned"}),
        ("dpmpp_2m", {"solver_type": "other"}),
        ("dpmpp_2m", {"prediction_type": "flow_prediction"}),
        ("euler", {"prediction_type": ["epsilon"]}),
        ("euler", {"beta_schedule": "sigmoid"}),
        ("euler", {"timestep_spacing": "other"}),
        ("euler", {"interpolation_type": "cubic"}),
        ("euler", {"timestep_type": "other"}),
        ("euler", {"final_sigmas_type": "other"}),
        ("euler", {"use_karras_sigmas": "yes"}),
        ("euler", {"beta_start": 0}),
        ("euler", {"beta_end": math.nan}),
        ("euler", {"beta_end": "0.012"}),
        ("euler", {"num_train_timesteps": 1}),
        ("euler", {"num_train_timesteps": 10**9}),
        ("euler", {"num_train_timesteps": 1000.0}),
        ("euler", {"steps_offset": -1}),
        ("euler", {"trained_betas": [0.1, 2.0]}),
        ("euler", {"trained_betas": [0.1] * 999}),
        ("euler", {"sigma_min": 0}),
        ("euler", {"sigma_max": math.inf}),
        ("ddim", {"clip_sample_range": -1}),
        ("dpmpp_2m", {"lambda_min_clipped": math.nan}),
    ],
)
def test_what_is_not_computed_is_refused_by_name(sampler, change):
    [name] = change
    with pytest.raises(MRCError, match=f"^{name} is .* in the scheduler config.*change it to") as caught:
        settings_of(sampler, change)
    assert caught.value.argument == "scheduler"


def test_one_spacing_of_sigmas_at_most():
    with pytest.raises(MRCError, match="use_karras_sigmas and use_beta_sigmas; keep one"):
        settings_of("euler", {"use_karras_sigmas": True, "use_beta_sigmas": True})


def test_settings_of_other_classes_are_theirs():
    """As in diffusers' `from_config`; null is no."""
    assert (
        settings_of("euler_ancestral", {"use_karras_sigmas": True, "skip_prk_steps": True})
        == DEFAULTS["euler_ancestral"]
    )
    assert settings_of("euler", {"use_karras_sigmas": None})["use_karras_sigmas"] is False
