"""Rewards after every block (`reward_injection="blocks"`) in exports, against the eager pipeline."""

from importlib.util import find_spec

import pytest
import torch

from mrc_edit.engine import Engine
from mrc_edit.engine.backends.eager import EagerBackend
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.engine.tiers import TIERS
from mrc_edit.export.exporter import export
from mrc_edit.model import load_checkpoint

LATENT = {"num_inference_steps": 4, "resolution": 0, "output_type": "latent", "seed": 3, "scheduler": "euler"}
# One image's branches share an input in part, the other's not
REWARDS = {"reward_scores": [(5, 5, 5), (1, 2.5, 4)], "reward_guidance": [{"empty": (0, 0, 0)}, {"image": (0, 5, 0)}]}


@pytest.fixture(scope="module")
def truth(blocks):
    return Engine(EagerBackend(load_checkpoint(blocks)))


def edit(engine, photo, **options):
    return engine.edit([photo, photo[::-1]], ["make it snow", ""], **LATENT | options).images


def test_every_graph_is_the_eager_model(blocks_export):
    artifacts = read_manifest(blocks_export).artifacts
    assert len(artifacts) == 6
    for artifact in artifacts:
        assert 0 < artifact.difference <= 1e-5, artifact.role


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("rewards", [{}, REWARDS], ids=["one reward", "reward guidance"])
def test_an_edit_is_that_of_eager(blocks, blocks_export, truth, photo, error, backend, rewards):
    pytest.importorskip(backend)
    folder = blocks if backend == "torch" else blocks_export
    engine = Engine.from_pretrained(folder, backend, precision="float32")
    assert error(edit(engine, photo, **rewards), edit(truth, photo, **rewards)) <= 1e-5


@pytest.mark.parametrize("tier", ["fast", "turbo"])
def test_lossy_tiers_are_the_same_on_every_backend(blocks, blocks_export, photo, error, tier):
    pair = [
        edit(Engine(Engine.from_pretrained(folder, backend, precision="float32").backend, TIERS[tier]), photo)
        for folder, backend in ((blocks, "torch"), (blocks_export, "onnxruntime"))
    ]
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


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("float16", 1e-2), ("bfloat16", 5e-2)])
def test_half_precision_is_near(blocks, traced_once, tmp_path, dtype, most):
    artifacts = [a for a in export(blocks, tmp_path / "out", dtype=dtype).artifacts if a.difference is not None]
    assert artifacts and all(1e-6 < artifact.difference <= most for artifact in artifacts)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is not installed (extra int8)")
def test_int8_is_near(blocks, traced_once, tmp_path, pictures, truth, photo, error):
    manifest = export(blocks, folder := tmp_path / "out", int8=pictures)
    assert {a.role for a in manifest.artifacts if a.precision == "int8"} == {"unet", "unet_shallow"}
    expected = edit(truth, photo)
    for backend in ("onnxruntime", "openvino"):
        engine = Engine.from_pretrained(folder, backend, precision="int8")
        assert 1e-4 < error(edit(engine, photo), expected) < 0.15
