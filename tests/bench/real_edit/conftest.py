"""A Real-Edit of two images, and a judge whose scores are a function of the instruction."""

import json

import numpy as np
import pytest
from PIL import Image

from mrc_edit.bench.real_edit.items import TYPES
from mrc_edit.bench.real_edit.run import edit_items
from mrc_edit.judge import Reward

SETTINGS = {"num_inference_steps": 1, "scheduler": "euler", "guidance_scale": 1.5, "image_guidance_scale": 1.0}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    instructions = {}
    for image, label in (("2.jpeg", ""), ("10.png", " Edit")):
        pixels = np.random.RandomState(len(instructions)).randint(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(folder / "images" / image)
        instructions[image] = [f"{i}. {kind.title()}{label}: {kind} <{i}> & {image}" for i, kind in enumerate(TYPES, 1)]
    (folder / "instructions.json").write_text(json.dumps(instructions))
    return folder


class FakeJudge:
    """Scores by the instruction's letters; `unusable` instructions have no quality."""

    def __init__(self, unusable=()):
        self.unusable, self.asked = unusable, []

    def score(self, source, edited, instruction):
        self.asked.append(instruction)
        scores = [(sum(map(ord, instruction)) + i) % 6 for i in range(3)]
        reward = Reward(tuple(scores), tuple(s >= 4 for s in scores), tuple(f"text {s}" for s in scores), tokens=10)
        if instruction not in self.unusable:
            return reward
        values = {name: (*getattr(reward, name)[:2], None) for name in ("scores", "verdicts", "texts")}
        return Reward(**values, failures=(None, None, "unusable: <prose>"), tokens=10)


@pytest.fixture
def fake_judge():
    return FakeJudge


@pytest.fixture(scope="session")
def settings():
    return SETTINGS


@pytest.fixture(scope="session")
def edited(data, tiny_export, tmp_path_factory):
    """A run with all its edits, to be copied; and its items."""
    out = tmp_path_factory.mktemp("run") / "edited"
    return out, edit_items(data, str(tiny_export), out, SETTINGS)[0]
