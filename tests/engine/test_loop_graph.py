import shutil
from dataclasses import replace

import numpy as np
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine import backends as registry
from mrc_edit.engine.backends import onnxruntime as module
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.engine.serving import AsyncEngine
from mrc_edit.export.exporter import digests, export
from mrc_edit.export.loop import add_loop

LATENT = {"num_inference_steps": 3, "resolution": 0, "output_type": "latent", "seed": 3}
RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(registry.state_of(name) != "available", reason=f"no {name} here"))
    for name in ("onnxruntime", "openvino")
]


@pytest.fixture(scope="module")
def looped(tiny_export, tmp_path_factory):
    """What `mrc-export --loop` writes, without tracing again."""
    folder = tmp_path_factory.mktemp("looped") / "exported"
    shutil.copytree(tiny_export, folder)
    manifest = read_manifest(folder)
    artifact = add_loop(folder, manifest.artifact("unet", "onnx"))
    replace(manifest, artifacts=[*manifest.artifacts, artifact], files=digests(folder)).write(folder)
    return folder


@pytest.fixture(scope="module", params=RUNTIMES)
def pair(looped, request):
    """The same engine step by step, and with all steps in one graph."""
    return [Engine.from_pretrained(looped, request.param, precision="float32", loop=loop) for loop in (False, True)]


@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral", "ddim", "dpmpp_2m"])
def test_it_is_the_edit_of_the_loop(pair, photo, error, scheduler):
    step, whole = (engine.edit(photo, "snow", scheduler=scheduler, **LATENT).images for engine in pair)
    assert error(whole, step) <= 1e-5


def test_a_batch_with_rewards_and_seeds_of_its_own(pair, photo, error):
    asked = {
        "reward_scores": [(5, 5, 5), (1, 4, 2)],
        "reward_guidance": [None, {"empty": (0, 0, 0)}],
        "scheduler": "euler_ancestral",
    }
    step, whole = (
        engine.edit([photo, photo[::-1]], ["snow", "rain"], **asked, **LATENT | {"seed": [1, 2]}).images
        for engine in pair
    )
    assert error(whole, step) <= 1e-5


def test_other_steps_sizes_and_guidance_follow(pair, photo, error):
    for image, asked in (
        (photo[:64], {"num_inference_steps": 5}),
        (photo, {"image_guidance_scale": 1}),
        (photo, {"num_inference_steps": 1, "guidance_scale": 1, "image_guidance_scale": 1}),
    ):
        results = [engine.edit(image, "snow", **LATENT | asked) for engine in pair]
        assert error(results[1].images, results[0].images) <= 1e-5
        assert len(results[1].step_seconds) == len(results[0].step_seconds)


@pytest.fixture(scope="module")
def plain_looped(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "exported"
    artifact = export(plain, folder, loop=True).artifact("unet_loop", "onnx")
    assert 0 < artifact.difference < 1e-4
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_plain_model(plain, plain_looped, photo, error, runtime):
    engine = Engine.from_pretrained(plain_looped, runtime, precision="float32", loop=True)
    expected = Engine.from_pretrained(plain).edit(photo, "snow", **LATENT).images
    assert error(engine.edit(photo, "snow", **LATENT).images, expected) <= 1e-4


def test_the_weights_are_on_disk_once(looped):
    assert {path.name for path in (looped / "unet").iterdir()} == {"model.onnx", "model.onnx.data", "loop.onnx"}
    assert (looped / "unet" / "loop.onnx").stat().st_size < 1.5 * (looped / "unet" / "model.onnx").stat().st_size


def test_bfloat16_is_validated(tiny, tmp_path):
    artifact = export(tiny, tmp_path / "exported", dtype="bfloat16", loop=True).artifact("unet_loop", "onnx")
    assert artifact.precision == "bfloat16" and 1e-5 < artifact.difference < 0.1


def test_its_optimized_graph_is_kept(looped, photo, error, tmp_path, monkeypatch):
    expected = Engine.from_pretrained(looped, loop=True).edit(photo, "snow", **LATENT).images
    monkeypatch.setenv("MRC_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "LARGE", 0)
    for _ in range(2):
        found = Engine.from_pretrained(looped, loop=True).edit(photo, "snow", **LATENT).images
        assert error(found, expected) <= 1e-6
    assert list(tmp_path.glob("onnxruntime-unet_loop-*"))


def test_what_needs_steps_is_refused(pair, looped, photo):
    with pytest.raises(MRCError, match="without loop"):
        pair[1].edit(photo, "snow", callback_on_step_end=lambda *_: None, **LATENT)
    with pytest.raises(MRCError, match="without loop"):
        AsyncEngine(pair[1])
    with pytest.raises(MRCError, match="leave out tier or loop"):
        Engine.from_pretrained(looped, loop=True, tier="fast")
    with pytest.raises(MRCError, match="not made in int8"):
        Engine.from_pretrained(looped, loop=True, precision="int8")


def test_an_export_without_it_says_so(tiny_export):
    with pytest.raises(MRCError, match="again with --loop"):
        Engine.from_pretrained(tiny_export, loop=True)


def test_latents_that_are_not_finite_are_refused(looped, photo):
    engine = Engine.from_pretrained(looped, loop=True)
    steps = engine.backend.unet_loop
    engine.backend.unet_loop = lambda **feeds: steps(**feeds) * np.float32(np.nan)
    with pytest.raises(MRCError, match="unet_loop gave NaN"):
        engine.edit(photo, "snow", **LATENT)
