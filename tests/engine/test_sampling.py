import itertools

import diffusers
import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.noise import generator, normal
from mrc_edit.engine.sampling import SAMPLERS, sampler_step, sampler_table

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DIFFUSERS = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
}


def predict(x, timestep):
    """A nonlinear noise predictor that numpy and torch compute alike."""
    return 0.5 * x + 0.3 * x[..., ::-1].copy() * np.cos(float(timestep)) + np.tanh(x)


def run_table(table, seed, shape):
    state = generator(seed)
    x = normal(state, shape) * table.initial_scale
    data = np.zeros(shape)
    for i, timestep in enumerate(table.timesteps):
        noise = predict(x * table.input_scale[i], timestep)
        fresh = normal(state, shape) if table.ancestral else 0.0
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


def run_diffusers(scheduler, steps, seed, shape, ancestral):
    """The scheduler in float64, its noise drawn in float32 as the pipeline's is."""
    random = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    x = torch.randn(shape, generator=random).double() * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        noise = torch.from_numpy(predict(scheduler.scale_model_input(x, timestep).numpy(), timestep))
        extra = {"generator": random} if ancestral else {}
        x = scheduler.step(noise.float() if ancestral else noise, timestep, x, **extra).prev_sample
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
    kind, extra = DIFFUSERS[name]
    shape = (1, 4, 9, 7)
    expected = run_diffusers(kind(**config, **extra), steps, 3, shape, name == "euler_ancestral")
    found = run_table(sampler_table(name, config, steps), 3, shape)
    assert error(found, expected) <= 1e-5


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
    kind, extra = DIFFUSERS[name]
    scheduler = kind(**CONFIG, **extra)
    scheduler.set_timesteps(13)
    np.testing.assert_allclose(sampler_table(name, CONFIG, 13).timesteps, scheduler.timesteps.numpy(), rtol=1e-6)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, "4", None])
def test_bad_step_counts(steps):
    with pytest.raises(MRCError, match="num_inference_steps"):
        sampler_table("euler", CONFIG, steps)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("heun", {}, "scheduler"),
        ("euler", {"prediction_type": "flow"}, "epsilon"),
        ("euler", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
        ("euler", {"timestep_spacing": "other"}, "timestep_spacing"),
    ],
)
def test_unsupported_schedules_are_named(name, change, word):
    with pytest.raises(MRCError, match=word):
        sampler_table(name, CONFIG | change, 4)
