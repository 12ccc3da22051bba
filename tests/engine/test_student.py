"""A distilled student: one branch, the guidance scales as conditions, the same on every backend."""

from importlib.util import find_spec

import numpy as np
import pytest

from mrc_edit import Engine, MRCError
from mrc_edit.engine.plan import make_plan
from mrc_edit.export.calibration import record
from mrc_edit.export.precision import TorchRecorder
from mrc_edit.model import load_checkpoint
from mrc_edit.model.graphs import graph_module

BEST = (((5.0, 5.0, 5.0), "None; None; None"),) * 3
SETTINGS = {"instruction": "snow", "seed": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def truth(student):
    return Engine.from_pretrained(student, "eager")


@pytest.fixture(scope="module", params=["torch", "onnxruntime", "openvino", "tensorrt"])
def engine(request, student, student_export):
    folder = student if request.param == "torch" else student_export
    if request.param == "tensorrt":
        request.getfixturevalue("on_a_fake_gpu")("tensorrt")
        folder = request.getfixturevalue("engine_export")(folder, "tensorrt")
    elif find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    options = {} if request.param == "onnxruntime" else {"precision": "float32"}
    return Engine.from_pretrained(folder, request.param, **options)


def test_its_plan_is_one_branch_and_the_scales():
    low = (((1.0, 1.0, 1.0), "x"),) * 3
    plan = make_plan(["snow", "rain"], [BEST, low], 7.5, 1.5, embedded=True)
    assert plan.texts == ["snow", "rain"] and len(plan.branch) == len(plan.image) == 2
    np.testing.assert_array_equal(plan.guidance, np.eye(2))
    np.testing.assert_array_equal(plan.scales, [[7.5, 1.5]] * 2)


@pytest.mark.parametrize(
    "given",
    [{}, {"guidance_scale": 1.0}, {"num_inference_steps": 1}, {"guidance_scale": 3.0, "image_guidance_scale": 2.5},
     {"reward_scores": (1, 5, 0), "reward_text": "None; None; blurred"}],
)  # fmt: skip
def test_every_backend_edits_as_eager(engine, truth, photo, error, given):
    one, other = (each.edit(photo, **SETTINGS, **given).images for each in (engine, truth))
    assert error(one, other) <= 1e-4


def test_a_batch_is_its_images_alone(engine, photo, error):
    scores = [(5, 5, 5), (1, 2, 3)]
    given = {"output_type": "latent", "guidance_scale": 4.0}
    both = engine.edit([photo, photo], ["snow", "rain"], reward_scores=scores, seed=[3, 4], **given).images
    alone = [
        engine.edit(photo, text, reward_scores=score, seed=seed, **given).images[0]
        for text, score, seed in zip(("snow", "rain"), scores, (3, 4), strict=True)
    ]
    assert error(both, np.stack(alone)) <= 1e-4


def test_each_scale_changes_the_edit(truth, photo, error):
    edits = [
        truth.edit(photo, **SETTINGS, guidance_scale=text, image_guidance_scale=image).images
        for text, image in ((7.5, 1.5), (3.0, 1.5), (7.5, 2.5))
    ]
    assert min(error(edits[0], edits[1]), error(edits[0], edits[2]), error(edits[1], edits[2])) > 1e-3


def test_a_plain_student_has_scales_too(photo, error):
    from mrc_edit.engine.backends.eager import CPU, EagerBackend
    from mrc_edit.engine.backends.torch import TorchBackend
    from mrc_edit.model.seeded import seeded, seeded_checkpoint

    def checkpoint():
        plain = seeded_checkpoint(rewards=False)
        plain.unet.embed_guidance()
        seeded(plain.unet)
        return plain

    engines = Engine(EagerBackend(checkpoint())), Engine(TorchBackend(checkpoint(), CPU, "float32"))
    given = {**SETTINGS, "num_inference_steps": 2}
    expected, actual = (engine.edit(photo, **given, guidance_scale=4.0).images for engine in engines)
    assert error(actual, expected) <= 1e-4
    assert error(engines[1].edit(photo, **given, guidance_scale=8.0).images, expected) > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [({"reward_guidance": (1, 1, 1)}, "one branch; leave it out and ask by reward_scores"),
     ({"negative_prompt": "fog"}, "one branch"), ({"guidance_scale": 10.5}, "scales from 1 to 10;"),
     ({"image_guidance_scale": 3.0}, "scales from 1 to 2.5;")],
)  # fmt: skip
def test_what_needs_other_branches_or_was_not_learnt_is_refused(truth, photo, given, message):
    with pytest.raises(MRCError, match=message) as caught:
        truth.edit(photo, **SETTINGS, **given)
    assert caught.value.argument == next(iter(given))


def test_its_own_defaults(engine, truth, photo):
    spelled_out = {"num_inference_steps": 4, "scheduler": "lcm", "guidance_scale": 7.5, "image_guidance_scale": 1.5}
    for one in (engine, truth):
        edits = [one.edit(photo, **SETTINGS, **given).images for given in ({}, spelled_out)]
        np.testing.assert_array_equal(*edits)


def test_scales_for_another_model(truth, eager):
    arrays = {"timesteps": np.ones(1, np.float32), "text_states": np.ones((1, 77, 64), np.float32),
              "reward_scores": np.ones((1, 3), np.float32), "reward_text": np.ones((1, 64), np.float32)}  # fmt: skip
    with pytest.raises(MRCError, match="needs guidance_scales"):
        truth.backend.conditioner(**arrays)
    with pytest.raises(MRCError, match="takes no guidance_scales"):
        eager.backend.conditioner(**arrays, guidance_scales=np.ones((1, 2), np.float32))


def test_int8_is_calibrated_on_its_own_few_steps(student, pictures):
    checkpoint = load_checkpoint(student)
    graphs = {"conditioner": "unet", "unet": "unet", "unet_shallow": "unet", "text_encoder": "text_encoder",
              "vae_encoder": "vae"}  # fmt: skip
    names = {"conditioner": "Conditioner", "unet": "UNetStep", "unet_shallow": "UNetShallow",
             "text_encoder": "TextEncoder", "vae_encoder": "VaeEncoder"}  # fmt: skip
    modules = {graph: graph_module(names[graph], getattr(checkpoint, part)) for graph, part in graphs.items()}
    backend = TorchRecorder(checkpoint, modules)
    record(backend, pictures, edits=1, size=64)
    assert [len(arrays["timesteps"]) for arrays in backend.once["conditioner"]] == [4]
    assert {sample["guidance"].shape for sample in backend.samples} == {(1, 1)}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is not installed (extra int8)")
def test_int8_is_near(student, truth, traced_once, pictures, photo, error, tmp_path):
    from mrc_edit.export.exporter import export

    export(student, tmp_path / "out", int8=pictures)
    expected = truth.edit(photo, **SETTINGS).images
    for backend in ("onnxruntime", "openvino"):
        quantized = Engine.from_pretrained(tmp_path / "out", backend, precision="int8")
        assert 1e-4 < error(quantized.edit(photo, **SETTINGS).images, expected) < 0.15
