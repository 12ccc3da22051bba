"""The contract of `engine.backends.base`, which every backend must meet, also one written after docs/structure.md."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mrc_edit.engine import Engine
from mrc_edit.engine.backends import BACKENDS, Entry, load_backend
from mrc_edit.engine.backends.base import Backend
from mrc_edit.engine.shipped import shipped

STRUCTURE = Path(__file__).parents[2] / "docs" / "structure.md"
TIMESTEPS = np.array([900.0, 400.0, 20.0], dtype=np.float32)
BRANCH, TEXT, REWARD = np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0, 1])
GUIDANCE = np.array([[7.5, -6.0, -0.5]], dtype=np.float32)


def recipe() -> ModuleType:
    """The backend that the page writes, as a module of the package."""
    code = re.search(r"```python\n(# engine/backends/.*?)```", STRUCTURE.read_text(), re.DOTALL)[1]
    module = ModuleType("mrc_edit.engine.backends.recipe")
    module.__package__ = "mrc_edit.engine.backends"
    exec(compile(code, str(STRUCTURE), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module", params=[*BACKENDS, "recipe"])
def backend(request) -> Backend:
    name = request.param
    if name == "recipe":
        BACKENDS[name] = Entry("export", ("onnxruntime",), "cpu", recipe().load)
        request.addfinalizer(lambda: BACKENDS.pop(name))
    if name == "tensorrt":
        request.getfixturevalue("on_a_fake_gpu")("tensorrt")
        folder = request.getfixturevalue("engine_export")(shipped("mini", name), "tensorrt", sizes=(32, 128, 256))
        return load_backend(folder, name)
    for module in BACKENDS[name].needs:
        pytest.importorskip(module)
    precision = "float32" if name == "openvino" else None
    return load_backend(shipped("mini", name), name, precision=precision)


@pytest.fixture(scope="module")
def truth() -> Backend:
    return load_backend(shipped("mini", "eager"), "eager")


@pytest.fixture(scope="module")
def arrays(truth) -> dict[str, np.ndarray]:
    geometry, random = truth.geometry, np.random.RandomState(0)
    ids = random.randint(0, geometry.eos_token_id, (2, geometry.text_length))
    ids[:, 7:] = geometry.pad_token_id
    return {
        "input_ids": ids.astype(np.int64),
        "images": np.tanh(random.standard_normal((2, 3, 64, 96))).astype(np.float32),
        "latents": random.standard_normal((2, geometry.latent_channels, 16, 24)).astype(np.float32),
        "sample": random.standard_normal((2, 2 * geometry.latent_channels, 16, 24)).astype(np.float32),
        "scores": np.array([[5, 5, 5], [1, 2.5, 0]], dtype=np.float32),
    }


def conditions_of(backend, arrays):
    states, pooled = backend.text_encoder(input_ids=arrays["input_ids"])
    return backend.conditioner(
        timesteps=TIMESTEPS, text_states=states, reward_scores=arrays["scores"], reward_text=pooled
    )


def unet_of(backend, arrays, branch=BRANCH, text=TEXT, reward=REWARD):
    return backend.guided_unet(conditions_of(backend, arrays), branch=branch, text=text, reward=reward, image=reward)


def assert_equals(actual, expected, error):
    assert actual.shape == expected.shape and actual.dtype == np.float32
    assert error(actual, expected) <= 1e-4


def test_the_encoders_and_the_decoder_are_those_of_eager(backend, truth, arrays, error):
    ids = {"input_ids": arrays["input_ids"]}
    for actual, expected in zip(backend.text_encoder(**ids), truth.text_encoder(**ids), strict=True):
        assert_equals(actual, expected, error)
    for method, name in (("vae_encoder", "images"), ("vae_decoder", "latents")):
        actual, expected = (getattr(one, method)(**{name: arrays[name]}) for one in (backend, truth))
        assert_equals(actual, expected, error)


@pytest.mark.parametrize("step", range(len(TIMESTEPS)))
def test_the_guided_noise_is_that_of_eager(backend, truth, arrays, error, step):
    pair = [unet_of(one, arrays).full(step, arrays["sample"], GUIDANCE) for one in (backend, truth)]
    assert_equals(*pair, error)


def test_several_rows_of_noise_are_weighted_each_by_its_own(backend, arrays, error):
    unet = unet_of(backend, arrays)
    rows = np.array([[7.5, -6.0, -0.5], [1, 0, 0]], dtype=np.float32)
    both = unet.full(1, arrays["sample"], rows).copy()
    for row, noise in zip(rows, both, strict=True):
        assert_equals(unet.full(1, arrays["sample"], row[None])[0], noise, error)


def test_two_that_take_turns_do_not_mix(backend, arrays, error):
    """Each owns its conditions, buffers and deep features, also where all shapes are equal."""
    first, second = ([0], [0], [0]), ([0], [1], [1])
    weight, samples = np.ones((1, 1), np.float32), (arrays["sample"][:1], arrays["sample"][1:])

    def run(unets, order):
        noises = {}
        for i, step, kind in order:
            noises[i, step] = getattr(unets[i], kind)(step, samples[i], weight).copy()
        return noises

    kinds = ["full", "shallow", "full"] if backend.reuses_features else ["full"] * 3
    alone, turns = {}, [(i, step, kind) for step, kind in enumerate(kinds) for i in (0, 1)]
    for i, rows in enumerate((first, second)):
        unet = unet_of(backend, arrays, *map(np.array, rows))
        alone |= run({i: unet}, [(i, step, kind) for step, kind in enumerate(kinds)])
    together = run([unet_of(backend, arrays, *map(np.array, rows)) for rows in (first, second)], turns)
    for key, noise in together.items():
        assert error(noise, alone[key]) <= 1e-6, key


def test_a_shallow_step_on_the_features_of_its_own_step_is_the_step(backend, arrays, error):
    unet = unet_of(backend, arrays)
    if not backend.reuses_features:
        with pytest.raises(TypeError, match="full steps only"):
            unet.shallow(0, arrays["sample"], GUIDANCE)
        return
    full = unet.full(0, arrays["sample"], GUIDANCE).copy()
    assert_equals(unet.shallow(0, arrays["sample"], GUIDANCE), full, error)


def test_a_whole_edit_is_that_of_eager(backend, truth, photo, error):
    options = {"seed": [1, 2], "resolution": 64, "output_type": "latent", "guidance_scale": 3.0}
    rewards = {"reward_scores": [(5, 5, 5), (1, 4, 2)], "reward_text": ["None; None; None", "the sky changed"]}
    pair = [
        Engine(one).edit([photo, photo[::-1]], ["make it night", ""], **rewards, **options).images
        for one in (backend, truth)
    ]
    assert error(*pair) <= 1e-4
