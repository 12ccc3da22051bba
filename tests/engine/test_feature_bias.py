"""SmartEdit's U-Net on every backend: a feature bias of each image, the same in all branches and steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrc_edit.core.adapters import Adapters
from mrc_edit.core.errors import MRCError
from mrc_edit.engine.backends import load_backend
from mrc_edit.engine.backends.eager import EagerBackend
from mrc_edit.engine.backends.providers import CUDA
from mrc_edit.engine.backends.torch import TorchBackend
from mrc_edit.engine.plan import make_plan
from mrc_edit.engine.tiers import TIERS, predictor
from mrc_edit.export import exporter, stages
from mrc_edit.model import load_checkpoint
from mrc_edit.model.extend import rebuilt
from mrc_edit.model.seeded import seeded_checkpoint

REWARDS = (((5, 5, 5), "None"),) * 3, (((1, 4, 2), "None"), ((5, 5, 5), "None"), ((5, 5, 5), "None"))
PLAN = make_plan(["snow", "rain"], list(REWARDS), 7.5, 1.5)
SIZE, STEPS = (8, 12), 3


def checkpoint(feature_bias=True):
    seeded = seeded_checkpoint()
    return replace(seeded, unet=rebuilt(seeded.unet, feature_bias=feature_bias).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def export_folder(tiny, traced_once, once):
    def make(folder):
        biased = load_checkpoint(tiny)
        biased.unet.feature_bias = True
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stages, "load_adapted", lambda *_, **__: (biased, Adapters()))
            exporter.export(tiny, folder)

    return once("exported-feature-bias", make)


@pytest.fixture(scope="module")
def truth():
    return EagerBackend(checkpoint())


@pytest.fixture(scope="module", params=["torch", "onnxruntime", "openvino", "tensorrt"])
def backend(request):
    if request.param == "torch":
        return TorchBackend(checkpoint(), torch.device("cpu"), "float32")
    folder = request.getfixturevalue("export_folder")
    if request.param == "tensorrt":
        request.getfixturevalue("on_a_fake_gpu")("tensorrt")
        folder = request.getfixturevalue("engine_export")(folder, "tensorrt")
    else:
        pytest.importorskip(request.param)
    return load_backend(folder, request.param, precision="float32")


def arrays():
    random = np.random.RandomState(0)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    return {
        "states": normal(len(PLAN.texts), 77, 64), "pooled": normal(len(PLAN.rewards), 64),
        "feature_bias": normal(2, 32, *SIZE), "samples": normal(STEPS, len(PLAN.image), 8, *SIZE),
    }  # fmt: skip


def noises(backend, feature_bias, tier="exact"):
    """The guided noise of each step, `[S, B, 4, h, w]`."""
    given = arrays()
    features = {} if feature_bias is None else {"feature_bias": feature_bias}
    conditions = backend.conditioner(
        timesteps=np.array([900, 400, 20], np.float32), text_states=given["states"], reward_text=given["pooled"],
        reward_scores=np.array([scores for scores, _ in PLAN.rewards], np.float32), **features,
    )  # fmt: skip
    predict = predictor(backend, conditions, PLAN, TIERS[tier], STEPS)
    return np.stack([predict(step, sample).copy() for step, sample in enumerate(given["samples"])])


def test_the_noise_is_that_of_eager(backend, truth, error):
    features = arrays()["feature_bias"]
    expected = noises(truth, features)
    assert error(noises(backend, features), expected) <= 1e-4
    assert error(noises(backend, features[::-1]), expected) > 0.1  # each image has its own


def test_zero_is_the_model_without(truth, error):
    zero, plain = noises(truth, np.zeros((2, 32, *SIZE), np.float32)), EagerBackend(checkpoint(False))
    assert np.array_equal(zero, noises(plain, None))


@pytest.mark.parametrize("tier", ["fast", "turbo"])
def test_lossy_tiers_agree_on_it(backend, error, tier):
    features = arrays()["feature_bias"]
    other = TorchBackend(checkpoint(), torch.device("cpu"), "float32")
    assert error(noises(backend, features, tier), noises(other, features, tier)) <= 1e-4
    assert error(noises(backend, features * 2, tier), noises(backend, features, tier)) > 0.1


def test_the_rows_are_taken_on_a_card(computing_card, export_folder, truth, error):
    features = arrays()["feature_bias"]
    on_card = load_backend(export_folder, "onnxruntime", provider=CUDA)
    assert error(noises(on_card, features), noises(truth, features)) <= 1e-4


def test_it_must_fit_the_model(backend, truth):
    for one in (backend, truth):
        with pytest.raises(MRCError, match="needs a feature_bias"):
            noises(one, None)
    with pytest.raises(MRCError, match="takes no feature_bias"):
        noises(EagerBackend(checkpoint(False)), arrays()["feature_bias"])
