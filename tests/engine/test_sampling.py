import itertools
from contextlib import contextmanager
from inspect import signature

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete, scheduling_lcm

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.noise import generator, normal
from mrc_edit.engine.sampling import SAMPLERS, sampler_of, sampler_table
from mrc_edit.engine.step_table import clipping, sampler_step

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DIFFUSERS = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
}
SHAPE = (1, 4, 9, 7)
FLOAT32 = torch.float32
EVERY = [
    {},
    {"beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()},
    {"num_train_timesteps": 400},
    {"steps_offset": 7, "timestep_spacing": "leading"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
]
SIGMAS = [
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 9.0},
    {"use_exponential_sigmas": True, "sigma_min": 0.05, "sigma_max": 9.0},
    {"use_beta_sigmas": True, "sigma_min": 0.05, "sigma_max": 9.0},
    {"final_sigmas_type": "sigma_min"},
    {"use_karras_sigmas": True, "timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
]
OWN = {
    "euler": [
        *SIGMAS,
        {"interpolation_type": "log_linear"},
        {"interpolation_type": "log_linear", "use_karras_sigmas": True},
        {"timestep_type": "continuous"},
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True},
    ],
    "euler_ancestral": [],
    "ddim": [
        {"clip_sample": False},
        {"clip_sample_range": 0.4},
        {"clip_sample_range": 0.4, "prediction_type": "v_prediction"},
        {"clip_sample_range": 0.4, "prediction_type": "sample"},
        {"clip_sample": False, "set_alpha_to_one": False},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "linspace", "prediction_type": "sample"},
    ],
    "dpmpp_2m": [
        *(change for change in SIGMAS if not change.keys() & {"use_exponential_sigmas", "use_beta_sigmas"}),
        {"use_lu_lambdas": True},
        {"solver_order": 1},
        {"solver_type": "heun"},
        {"solver_type": "bh2"},
        {"lower_order_final": False},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"solver_type": "heun", "lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 1, "use_karras_sigmas": True},
        {"lambda_min_clipped": -1.0},
        {"lambda_min_clipped": -1.0, "timestep_spacing": "trailing"},
    ],
    "lcm": [
        {"original_inference_steps": 20},
        {"original_inference_steps": 333},
        {"timestep_scaling": 0.01},
        {"timestep_scaling": 0.01, "prediction_type": "v_prediction"},
        {"timestep_scaling": 0.01, "prediction_type": "sample"},
    ],
}


def changes():
    """Every sampler with every change of its settings."""
    for name in SAMPLERS:
        for change in (*EVERY, *OWN[name]):
            if name == "lcm" and change == {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"}:
                continue  # it always begins at the last timestep, where such a model gives NaN in diffusers
            told = ",".join(f"{key}={'...' if isinstance(value, list) else value}" for key, value in change.items())
            yield pytest.param(name, change, id=f"{name}-{told or 'none'}")


def predict(x, timestep):
    """A nonlinear noise predictor that numpy and torch compute alike, and that changes slowly with time, as models."""
    return 0.5 * x + 0.3 * x[..., ::-1].copy() * np.cos(float(timestep) / 300) + np.tanh(x)


def draw(shape, generator, **_):
    """Noise in float32, as the pipeline draws it."""
    return torch.randn(shape, generator=generator, dtype=FLOAT32).double()


def run_table(table, seed, shape):
    random = torch.Generator().manual_seed(seed)
    x = draw(shape, random).numpy() * table.initial_scale
    data = np.zeros(shape)
    for i, timestep in enumerate(table.timesteps):
        noise = predict(x * table.input_scale[i], timestep)
        fresh = draw(shape, random).numpy() if table.ancestral else 0.0
        if table.clip is not None:
            fresh = clipping(table, i, noise, x)
        (a, b, c, e), (p, q) = table.coefficients[i], table.denoised[i]
        x, data = a * x + b * noise + c * data + e * fresh, p * x + q * noise
    return x


def test_a_step_is_its_row_of_the_table():
    random = np.random.RandomState(0)
    x, noise, denoised, fresh = random.standard_normal((4, 1, 4, 3, 5))
    for name in SAMPLERS:
        table = sampler_table(name, CONFIG, 5)
        for step in range(5):
            (a, b, c, e), (p, q) = table.coefficients[step], table.denoised[step]
            expected = a * x + b * noise + c * denoised + (e * fresh if table.ancestral else 0), p * x + q * noise
            arrays = [array.astype(np.float32) for array in (noise, x, denoised, fresh)]
            if not table.ancestral:
                arrays[-1] = None
            actual = sampler_step(*arrays, table.coefficients[step], table.denoised[step])
            for ours, truth in zip(actual, expected, strict=True):
                assert ours.dtype == np.float32
                np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-4)


@contextmanager
def float64():
    """diffusers' schedulers compute in float64 where they ask for float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(np, "float32", np.float64)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(FLOAT32)


def run_diffusers(scheduler, steps, seed, shape):
    """The scheduler on latents and predictions in float64."""
    random = torch.Generator().manual_seed(seed)
    extra = {"generator": random} if "generator" in signature(scheduler.step).parameters else {}
    scheduler.set_timesteps(steps)
    x = draw(shape, random) * scheduler.init_noise_sigma
    with pytest.MonkeyPatch.context() as patch:
        for module in (scheduling_euler_ancestral_discrete, scheduling_dpmsolver_multistep, scheduling_lcm):
            patch.setattr(module, "randn_tensor", draw)
        for timestep in scheduler.timesteps:
            noise = torch.from_numpy(predict(scheduler.scale_model_input(x, timestep).numpy(), timestep))
            x = scheduler.step(noise, timestep, x, **extra).prev_sample
    return x.numpy()


@pytest.mark.parametrize(
    ("name", "prediction"),
    [pair for pair in itertools.product(SAMPLERS, ("epsilon", "v_prediction", "sample"))
     if pair != ("euler_ancestral", "sample")],  # diffusers has it not; see the next test
)  # fmt: skip
@pytest.mark.parametrize("spacing", [None, "linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [5, 20, 30])
def test_sampler_agrees_with_diffusers(name, steps, spacing, prediction, error):
    config = CONFIG | ({"timestep_spacing": spacing} if spacing else {}) | {"prediction_type": prediction}
    expected = run_diffusers(DIFFUSERS[name].from_config(config), steps, 3, SHAPE)
    assert error(run_table(sampler_table(name, config, steps), 3, SHAPE), expected) <= 1e-5


@pytest.mark.parametrize(("name", "change"), list(changes()))
@pytest.mark.parametrize("steps", [4, 20])
def test_every_setting_is_that_of_diffusers(name, change, steps, error):
    with float64():
        scheduler = DIFFUSERS[name].from_config(CONFIG | change)
        expected = run_diffusers(scheduler, steps, 3, SHAPE)
    table = sampler_table(name, CONFIG | change, steps)
    np.testing.assert_allclose(table.timesteps, scheduler.timesteps.numpy(), rtol=1e-9, atol=1e-9)
    assert error(run_table(table, 3, SHAPE), expected) <= 1e-9


@pytest.mark.parametrize("change", ["use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("steps", [4, 20])
def test_timesteps_that_diffusers_truncates_in_float32(change, steps, error):
    """At σ's highest value, whose timestep is 998 or 999 by the last bit of a logarithm."""
    config = CONFIG | {change: True}
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    expected = run_diffusers(scheduler, steps, 3, SHAPE)
    table = sampler_table("dpmpp_2m", config, steps)
    np.testing.assert_array_equal(table.timesteps, scheduler.timesteps.numpy())
    assert error(run_table(table, 3, SHAPE), expected) <= 1e-5


@pytest.mark.parametrize("change", ["use_exponential_sigmas", "use_beta_sigmas", "use_karras_sigmas", "use_lu_lambdas"])
def test_timesteps_of_unusual_betas_are_those_of_diffusers(change):
    """Bit for bit: with some betas the highest σ is at the last timestep, with others at the one before."""
    draw, first = np.random.RandomState(0), set()
    for i in range(60):
        start, end = (10 ** draw.uniform(*decades) for decades in ((-4.5, -2.5), (-2, -1.5)))
        schedule = ("linear", "scaled_linear", "squaredcos_cap_v2")[i % 3]
        config = {"beta_start": start, "beta_end": end, "beta_schedule": schedule, change: True}
        config |= {"num_train_timesteps": int(draw.randint(100, 1200)), "rescale_betas_zero_snr": i % 5 == 4}
        config |= {"timestep_spacing": "leading"} if i % 5 == 4 else {}
        steps = int(draw.randint(1, 40))
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
        scheduler.set_timesteps(steps)
        table = sampler_table("dpmpp_2m", config, steps)
        np.testing.assert_array_equal(table.timesteps, scheduler.timesteps.numpy(), err_msg=str((config, steps)))
        first.add(config["num_train_timesteps"] - int(table.timesteps[0]))
    assert first >= {1, 2} or change not in ("use_exponential_sigmas", "use_beta_sigmas")


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler"])
@pytest.mark.parametrize("steps", [1, 100, 333, 900])
def test_many_steps_agree_with_diffusers(name, spacing, steps, error):
    config = CONFIG | {"timestep_spacing": spacing, "clip_sample": False}
    expected = run_diffusers(DIFFUSERS[name].from_config(config), steps, 3, SHAPE)
    assert error(run_table(sampler_table(name, config, steps), 3, SHAPE), expected) <= 2e-5


@pytest.mark.parametrize(("name", "spacing"), [("ddim", "leading"), ("dpmpp_2m", "linspace"), ("dpmpp_2m", "leading")])
def test_steps_that_diffusers_cannot_take_are_refused(name, spacing):
    """Timesteps that repeat give NaN there, and one beyond the last an IndexError."""
    with pytest.raises(MRCError, match="1000, too many"):
        sampler_table(name, CONFIG | {"timestep_spacing": spacing}, 1000)


def test_a_consistency_model_has_no_more_steps_than_it_was_trained_with():
    with pytest.raises(MRCError, match="51 and original_inference_steps 50"):
        sampler_table("lcm", CONFIG, 51)
    with pytest.raises(MRCError, match="clip_sample is True"):
        sampler_table("lcm", CONFIG | {"clip_sample": True}, 4)


def test_noise_alone_is_no_beginning_for_a_model_that_predicts_noise():
    config = CONFIG | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for name in ("ddim", "lcm"):
        with pytest.raises(MRCError, match="rescale_betas_zero_snr"):
            sampler_table(name, config, 4)
    assert np.isfinite(sampler_table("ddim", config | {"prediction_type": "v_prediction"}, 4).coefficients).all()


def test_the_sampler_of_a_checkpoint_is_its_class():
    for name, kind in DIFFUSERS.items():
        assert sampler_of({"_class_name": kind.__name__}) == name
    assert sampler_of({"_class_name": "PNDMScheduler"}) is None
    assert sampler_of({}) is None


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_what_a_model_predicts_changes_no_step(name):
    """One picture x₀, told as noise, as velocity and as itself, gives the same latents."""
    picture = np.cos(np.arange(63.0)).reshape(1, 1, 9, 7)
    alphas = np.cumprod(1 - np.linspace(CONFIG["beta_start"] ** 0.5, CONFIG["beta_end"] ** 0.5, 1000) ** 2)
    found = []
    for prediction in ("epsilon", "v_prediction", "sample"):
        table = sampler_table(name, CONFIG | {"prediction_type": prediction}, 6)
        state = generator(5)
        x, data = normal(state, picture.shape) * table.initial_scale, np.zeros_like(picture)
        for i, timestep in enumerate(table.timesteps):
            ratio = np.interp(timestep, np.arange(1000), np.sqrt((1 - alphas) / alphas))
            alpha, sigma = (ratio**2 + 1) ** -0.5, ratio * (ratio**2 + 1) ** -0.5
            noise = (x * table.input_scale[i] - alpha * picture) / sigma
            told = {"epsilon": noise, "v_prediction": alpha * noise - sigma * picture, "sample": picture}[prediction]
            fresh = normal(state, picture.shape) if table.ancestral else 0.0
            (a, b, c, e), (p, q) = table.coefficients[i], table.denoised[i]
            x, data = a * x + b * told + c * data + e * fresh, p * x + q * told
            np.testing.assert_allclose(data, picture, atol=1e-9)
        found.append(x)
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)
    np.testing.assert_allclose(found[0], found[2], atol=1e-9)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_timesteps_are_those_of_diffusers(name):
    scheduler = DIFFUSERS[name](**CONFIG)
    scheduler.set_timesteps(13)
    np.testing.assert_allclose(sampler_table(name, CONFIG, 13).timesteps, scheduler.timesteps.numpy(), rtol=1e-6)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, "4", None])
def test_bad_step_counts(steps):
    with pytest.raises(MRCError, match="num_inference_steps"):
        sampler_table("euler", CONFIG, steps)


@pytest.mark.parametrize("name", ["heun", "", None, ["euler"]])
def test_unknown_samplers_are_named(name):
    with pytest.raises(MRCError, match="choose one of euler"):
        sampler_table(name, CONFIG, 4)
