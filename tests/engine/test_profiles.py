from dataclasses import replace

import pytest

from mrc_edit.engine import Engine
from mrc_edit.engine.backends.graphs import GraphBackend
from mrc_edit.engine.graphs import GRAPHS
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.engine.profiles import profile, sides
from mrc_edit.engine.shipped import shipped

EDIT = {"num_inference_steps": 3, "resolution": 0, "guidance_scale": 3.0, "image_guidance_scale": 1.5}
TEXTS = ("instruction", "negative_prompt", "reward_text", "reward_guidance_text")
TURBO = {"tier": "turbo", "precision": "float32"}


def test_the_numbers_of_the_step():
    manifest = read_manifest(shipped("mini", "onnxruntime"))
    shapes = profile(manifest.artifact("unet", "onnx"), (64, 128, 256), 4, 2)
    channels = 2 * manifest.geometry.latent_channels
    bounds = {"min": (1, 16), "opt": (2, 32), "max": (6, 64)}
    assert shapes["sample"] == {name: [rows, channels, side, side] for name, (rows, side) in bounds.items()}
    assert shapes["guidance"] == {"min": [1, 1], "opt": [1, 3], "max": [4, 6]}


@pytest.mark.parametrize(
    ("resolution", "multiple", "expected"),
    [(512, 64, (256, 512, 768)), (768, 64, (384, 768, 1152)), (128, 16, (64, 128, 192)), (64, 64, (64, 64, 64))],
)
def test_the_sides_of_a_model_by_default(resolution, multiple, expected):
    geometry = read_manifest(shipped("mini", "onnxruntime")).geometry
    assert sides(replace(geometry, resolution=resolution, multiple=multiple), None, 1) == expected


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
