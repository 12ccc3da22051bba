"""The arguments of an edit: declared once, checked with their names, completed by the model's own defaults."""

import dataclasses
from typing import get_type_hints

import numpy as np
import pytest

from mrc_edit import EditRequest, Engine, MRCError
from mrc_edit.core.defaults import Defaults, read_defaults, write_defaults
from mrc_edit.engine.request import EditOptions, check
from mrc_edit.engine.shipped import MODELS
from mrc_edit.model import load_checkpoint, save_checkpoint

MINI = Defaults(scheduler="euler", num_inference_steps=2, guidance_scale=1.0, image_guidance_scale=1.0)


def test_the_keywords_are_the_fields_of_the_request():
    fields = {field.name for field in dataclasses.fields(EditRequest)} - {"image", "instruction"}
    assert fields == set(EditOptions.__annotations__)
    requested, optional = get_type_hints(EditRequest), get_type_hints(EditOptions)
    assert all(requested[name] == optional[name] for name in fields)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"image": "none.png"}, "image"),
        ({"image": np.zeros((64, 64, 7), np.uint8)}, "image"),
        ({"instruction": 5}, "instruction"),
        ({"instruction": ["a", "b", "c"], "image": [np.zeros((64, 64, 3), np.uint8)] * 2}, "image"),
        ({"reward_scores": (6, 5, 5)}, "reward_scores"),
        ({"reward_text": 5}, "reward_text"),
        ({"reward_guidance": {"text": (1, 1, 1)}}, "reward_guidance"),
        ({"reward_guidance": (1, 1, 9)}, "reward_guidance"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"image_guidance_scale": "x"}, "image_guidance_scale"),
        ({"scheduler": "heun"}, "scheduler"),
        ({"seed": 1.5}, "seed"),
        ({"resolution": 7}, "resolution"),
        ({"output_type": "jpeg"}, "output_type"),
    ],
)
def test_an_error_names_its_argument(eager, photo, change, argument):
    with pytest.raises(MRCError) as caught:
        eager.edit(**{"image": photo, "instruction": "snow"} | change)
    assert caught.value.argument == argument


def test_without_flags_the_model_edits_by_its_own_defaults(photo):
    engine = Engine.from_pretrained("mini")
    settings = check(engine.backend, EditRequest(photo, "make it night")).settings
    assert (settings.scheduler, settings.steps, settings.guidance) == ("euler", 2, (1.0, 1.0))
    own = engine.edit(photo, "make it night", seed=3).images[0]
    spelled_out = {name: value for name, value in dataclasses.asdict(MINI).items() if "limit" not in name}
    assert own.size == (64, 128)
    np.testing.assert_array_equal(own, engine.edit(photo, "make it night", seed=3, **spelled_out).images[0])


def test_a_model_without_defaults_has_the_released_ones_and_its_own_sampler(eager, photo):
    settings = check(eager.backend, EditRequest(photo, "snow")).settings
    assert (settings.scheduler, settings.steps, settings.guidance) == ("euler_ancestral", 30, (7.5, 1.5))
    eager.backend.scheduler["_class_name"], before = "DDIMScheduler", eager.backend.scheduler["_class_name"]
    try:
        assert check(eager.backend, EditRequest(photo, "snow")).settings.scheduler == "ddim"
        eager.backend.scheduler["_class_name"] = "PNDMScheduler"
        with pytest.raises(MRCError, match=r"own sampler is PNDMScheduler.*choose scheduler euler") as caught:
            check(eager.backend, EditRequest(photo, "snow"))
        assert caught.value.argument == "scheduler"
        assert check(eager.backend, EditRequest(photo, "snow", scheduler="euler")).settings.scheduler == "euler"
    finally:
        eager.backend.scheduler["_class_name"] = before


def test_defaults_go_with_the_checkpoint_and_its_export(tiny, tmp_path):
    checkpoint = dataclasses.replace(load_checkpoint(tiny), defaults=MINI)
    save_checkpoint(checkpoint, tmp_path / "saved")
    assert load_checkpoint(tmp_path / "saved").defaults == MINI
    assert not (tiny / "defaults.json").exists()
    for name in ("onnxruntime", "eager"):
        assert Engine.from_pretrained("mini", name).backend.defaults == read_defaults(MODELS["mini"] / "checkpoint")


def test_bad_defaults_are_named(tmp_path):
    write_defaults(tmp_path, MINI)
    assert read_defaults(tmp_path) == MINI
    (tmp_path / "defaults.json").write_text('{"steps": 3}')
    with pytest.raises(MRCError, match="has 'steps'; its entries are scheduler, num_inference_steps"):
        read_defaults(tmp_path)
