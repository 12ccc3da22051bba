"""Rewards after every block (`reward_injection="blocks"`) on every backend, against the eager pipeline."""

import pytest
import torch

from mrc_edit.engine import Engine
from mrc_edit.engine.backends.eager import EagerBackend
from mrc_edit.engine.tiers import TIERS
from mrc_edit.model import load_checkpoint

LATENT = {"num_inference_steps": 4, "resolution": 0, "output_type": "latent", "seed": 3, "scheduler": "euler"}
# One image's branches share an input in part, the other's not
REWARDS = {"reward_scores": [(5, 5, 5), (1, 2.5, 4)], "reward_guidance": [{"empty": (0, 0, 0)}, {"image": (0, 5, 0)}]}


@pytest.fixture(scope="module")
def truth(blocks):
    return Engine(EagerBackend(load_checkpoint(blocks)))


def edit(engine, photo, **options):
    return engine.edit([photo, photo[::-1]], ["make it snow", ""], **LATENT | options).images


@pytest.fixture(scope="module", params=["torch", "onnxruntime", "openvino", "tensorrt"])
def engine(request):
    name = request.param
    folder = request.getfixturevalue("blocks" if name == "torch" else "blocks_export")
    if name == "tensorrt":
        request.getfixturevalue("on_a_fake_gpu")(name)
        folder = request.getfixturevalue("engine_export")(folder, name)
    elif name != "torch":
        pytest.importorskip(name)
    return Engine.from_pretrained(folder, name, precision="float32")


@pytest.mark.parametrize("rewards", [{}, REWARDS], ids=["one reward", "reward guidance"])
def test_an_edit_is_that_of_eager(engine, truth, photo, error, rewards):
    assert error(edit(engine, photo, **rewards), edit(truth, photo, **rewards)) <= 1e-5


@pytest.mark.parametrize("tier", ["fast", "turbo"])
def test_lossy_tiers_are_the_same_on_every_backend(engine, blocks, photo, error, tier):
    other = Engine.from_pretrained(blocks, "torch", precision="float32")
    pair = [edit(Engine(one.backend, TIERS[tier]), photo) for one in (engine, other)]
    assert error(*pair) <= 1e-5


def test_bfloat16_computes_the_conditions_in_float32(blocks, photo, truth, error):
    backend = Engine.from_pretrained(blocks, "torch", precision="bfloat16", device="cpu").backend
    conditioner, whole = backend.modules["conditioner"], load_checkpoint(blocks).unet.state_dict()
    own = {id(parameter) for parameter in conditioner.own()}
    names = {name for name, parameter in conditioner.unet.named_parameters() if id(parameter) in own}
    assert {"reward_type_embedding", "reward_blocks.4.ca.attention.self.key.weight"} <= names
    for name in names:
        assert torch.equal(conditioner.unet.get_parameter(name), whole[name]), name
    assert 1e-4 < error(edit(Engine(backend), photo), edit(truth, photo)) < 0.1
