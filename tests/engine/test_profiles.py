import pytest

from mrc_edit.engine import Engine
from mrc_edit.engine.backends.graphs import GraphBackend
from mrc_edit.engine.graphs import GRAPHS
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.engine.profiles import profile
from mrc_edit.engine.shipped import shipped

EDIT = {"num_inference_steps": 3, "resolution": 0, "guidance_scale": 3.0, "image_guidance_scale": 1.5}
TEXTS = ("instruction", "negative_prompt", "reward_text", "reward_guidance_text")
TURBO = {"tier": "turbo", "precision": "float32"}


def test_the_numbers_of_the_step():
    unet = read_manifest(shipped("mini", "onnxruntime")).artifact("unet", "onnx")
    shapes = profile(unet, (64, 128, 256), 4, 2)
    assert shapes["sample"] == {"min": [1, 8, 16, 16], "opt": [2, 8, 32, 32], "max": [6, 8, 64, 64]}
    assert shapes["guidance"] == {"min": [1, 1], "opt": [1, 3], "max": [4, 6]}


def recorded(engine, monkeypatch) -> list[tuple[str, dict[str, tuple[int, ...]]]]:
    """From here on: graph and input shapes of every call."""
    fed, runner = [], engine.backend.runner

    def recording(graph):
        run = runner(graph)

        def call(feeds):
            fed.append((graph, {name: tuple(value.shape()) for name, value in feeds.items()}))
            return run(feeds)

        return call

    assert isinstance(engine.backend, GraphBackend)
    monkeypatch.setattr(engine.backend, "runner", recording)
    return fed


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("opening", "options"), [({}, {}), ({}, {"image_guidance_scale": 1.0}), (TURBO, {})])
def test_whatever_an_edit_feeds_is_within(photo, monkeypatch, images, opening, options):
    """With a batch, a size and as many different texts and rewards as the profile is for."""
    engine = Engine.from_pretrained("mini", **opening)
    fed, manifest = recorded(engine, monkeypatch), engine.backend.manifest
    texts = {name: [f"{name} {i}" for i in range(images)] for name in TEXTS}
    engine.edit([photo] * images, **texts, reward_guidance=(1, 1, 1), **EDIT | options)
    assert {graph for graph, _ in fed} == set(GRAPHS) - (set() if opening else {"unet_shallow"})
    for graph, shapes in fed:
        bounds = profile(manifest.artifact(graph, "onnx"), (64, 128, 128), manifest.geometry.vae_scale, images)
        for name, shape in shapes.items():
            for least, length, greatest in zip(bounds[name]["min"], shape, bounds[name]["max"], strict=True):
                assert least <= length <= greatest, (graph, name, shape)
