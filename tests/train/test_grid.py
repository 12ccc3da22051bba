"""Validation grids, and the page at the end."""

import re
from dataclasses import replace

from PIL import Image

from mrc_edit.train.loop import train
from mrc_edit.train.state import list_states


def test_a_run_leaves_pictures_a_report_and_a_tracker(base, brief_grids, tmp_path):
    out = tmp_path / "shown"
    train(replace(base, stage=1, steps=2, validate_every=1, tracker="tensorboard", out=str(out)))
    grids = sorted(path.name for path in (out / "validation").iterdir())
    assert grids == ["00000001.png", "00000002.png"]
    with Image.open(out / "validation" / grids[0]) as picture:
        assert picture.size == (3 * 64, 6 * (64 + 14)) and picture.getcolors(100) is None
    page, pictures = re.subn(r"data:image/png;base64,[\w+/=]+", "", (out / "report.html").read_text())
    assert pictures == 3 and "learning_rate" in page and "http" not in page
    assert list(out.rglob("events.out.tfevents*"))


def test_validation_does_not_change_the_training(base, undisturbed, brief_grids, tmp_path, same_state):
    train(replace(base, validate_every=1, out=str(tmp_path / "v")))
    assert same_state(list_states(tmp_path / "v")[-1], list_states(undisturbed)[-1])
