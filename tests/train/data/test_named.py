import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.core.paths import file_inside
from mrc_edit.train.data import open_triplets
from mrc_edit.train.data.named import data_folder

NAME = "someone/edits"


@pytest.fixture
def pushed(tmp_path):
    """One triplet as an image folder with awkward names, and code that must stay where it is."""
    folder = tmp_path / "pushed"
    folder.mkdir()
    for name in ("source [1].png", "edited [1].png"):
        Image.fromarray(np.full((16, 16, 3), len(name), dtype=np.uint8)).save(folder / name)
    row = {"original_image": "source [1].png", "edited_image": "edited [1].png", "edit_prompt": "make it night"}
    row |= {"reward_scores": [5, 4, 3], "reward_text": "None; None; None"}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "edits.py").write_text("raise SystemExit")
    return folder


def test_a_data_set_by_name_is_that_of_its_folder(hub, pushed):
    hub.push(NAME, pushed, kind="datasets")
    assert {path.name for path in data_folder(NAME).iterdir()} == {path.name for path in pushed.glob("*[gl]")}
    by_name, by_folder = open_triplets(NAME)[0], open_triplets(pushed)[0]
    assert by_name.instruction == by_folder.instruction == "make it night"
    assert np.array_equal(np.asarray(by_name.source), np.asarray(by_folder.source))


def test_a_folder_goes_before_a_name(hub, pushed, tmp_path):
    hub.push(NAME, pushed, kind="datasets")
    shutil.copytree(pushed, tmp_path / NAME)
    open_triplets(NAME)
    assert hub.log == []


@pytest.mark.parametrize("neither", ["nowhere", "./someone/edits", "a/b/", "a/../b"])
def test_what_is_neither(hub, neither):
    with pytest.raises(MRCError, match=f"{neither} does not exist; give a data set, or its name OWNER/NAME"):
        open_triplets(neither)


def test_names_in_a_copy_lead_to_no_other_blob(hub, pushed):
    """The files of a copy are links into the cache's blobs; a name must not reach these by itself."""
    hub.push(NAME, pushed, kind="datasets")
    copy = data_folder(NAME)
    blob = next((copy.parents[1] / "blobs").iterdir())
    assert file_inside(copy, "metadata.jsonl").is_relative_to(copy.parents[1] / "blobs")
    with pytest.raises(MRCError, match="leads out of"):
        file_inside(copy, f"../../blobs/{blob.name}")
