"""Tables as the known data sets are on the hub, written by `datasets`, and others by --columns."""

import json

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.train.data import open_data, open_triplets
from mrc_edit.train.data.columns import KNOWN, parse_columns
from mrc_edit.train.data.writers import write_triplets

datasets = pytest.importorskip("datasets", reason="the train extra is not installed")

# Types of all columns, as the pages of the data sets on the hub list them
TYPES = {
    "timbrooks/instructpix2pix-clip-filtered": {
        "original_prompt": "string", "original_image": "image", "edit_prompt": "string", "edited_prompt": "string",
        "edited_image": "image",
    },
    "osunlp/MagicBrush": {
        "img_id": "string", "turn_index": "int32", "source_img": "image", "mask_img": "image", "instruction": "string",
        "target_img": "image",
    },
    "fusing/instructpix2pix-1000-samples": {"input_image": "image", "edit_prompt": "string", "edited_image": "image"},
    "BleachNick/UltraEdit": {
        "clip_sim_source": "float64", "source_caption": "string", "target_caption": "string", "idx": "int64",
        "edit_prompt": "string", "edit_object": "null", "source_image": "image", "edited_image": "image",
        "mask_image": "null",
    },
}  # fmt: skip
# Source, edited image, instruction
ROLES = {
    "timbrooks/instructpix2pix-clip-filtered": ("original_image", "edited_image", "edit_prompt"),
    "osunlp/MagicBrush": ("source_img", "target_img", "instruction"),
    "fusing/instructpix2pix-1000-samples": ("input_image", "edited_image", "edit_prompt"),
    "BleachNick/UltraEdit": ("source_image", "edited_image", "edit_prompt"),
}
ROWS = 8


def picture(seed, size=(24, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def value(kind, column, row):
    values = {"image": picture([row, len(column)]), "string": f"{column} {row}", "null": None}
    return values.get(kind, row)


def table(types):
    """A `datasets.Dataset` of 8 rows."""
    features = {c: datasets.Image() if kind == "image" else datasets.Value(kind) for c, kind in types.items()}
    rows = [{c: value(kind, c, row) for c, kind in types.items()} for row in range(ROWS)]
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def check(found, source, edited, instruction):
    assert len(found) == ROWS
    for row in range(ROWS):
        triplet = found[row]
        assert triplet.instruction == f"{instruction} {row}"
        assert np.array_equal(triplet.source, value("image", source, row))
        assert np.array_equal(triplet.edited, value("image", edited, row))
        assert triplet.scores is None


def test_types_are_those_of_all_known_sets():
    assert TYPES.keys() == ROLES.keys() == KNOWN.keys()


@pytest.mark.parametrize("name", KNOWN)
def test_known_data_sets(name, tmp_path, recwarn):
    types = TYPES[name]
    table(types).to_parquet(str(tmp_path / "train.parquet"))
    check(open_triplets(tmp_path), *ROLES[name])
    unused = sorted(types.keys() - {*ROLES[name]})
    said = [str(warning.message) for warning in recwarn if "not used" in str(warning.message)]
    assert said == ([f"{tmp_path}: not used: {', '.join(unused)}"] if unused else [])


@pytest.mark.filterwarnings("ignore:.*not used")
def test_columns_that_are_not_used_are_not_decoded(tmp_path):
    rows = table(TYPES["osunlp/MagicBrush"]).cast_column("mask_img", datasets.Image(decode=False))
    rows = rows.map(lambda row: {"mask_img": {"bytes": b"no picture", "path": None}})
    rows.cast_column("mask_img", datasets.Image()).to_parquet(str(tmp_path / "t.parquet"))
    check(open_triplets(tmp_path), *ROLES["osunlp/MagicBrush"])


GIVEN = "source=before,edited=after,instruction=text"


def other_table(folder):
    table({"before": "image", "text": "string", "after": "image"}).to_parquet(str(folder / "t.parquet"))


def test_other_columns_by_name(tmp_path):
    other_table(tmp_path)
    found = open_triplets(tmp_path, columns=GIVEN)
    assert found[3].instruction == "text 3" and np.array_equal(found[3].edited, value("image", "after", 3))


def test_a_part_of_the_columns_by_name(tmp_path):
    """The others are those of the known data set that has them."""
    table({"source_img": "image", "caption": "string", "target_img": "image"}).to_parquet(str(tmp_path / "t.parquet"))
    assert open_triplets(tmp_path, columns="instruction=caption")[2].instruction == "caption 2"


@pytest.mark.parametrize(
    ("columns", "message"),
    [(None, r"\(after, before, text\) are of no known data set; .*--columns source=NAME,edited=NAME"),
     ("source=before,edited=after,instruction=words", "lack words"), ("source=before", "no known data set")],
)  # fmt: skip
def test_an_unknown_table_names_its_columns(columns, message, tmp_path):
    other_table(tmp_path)
    with pytest.raises(MRCError, match=message):
        open_triplets(tmp_path, columns=columns)


@pytest.mark.filterwarnings("ignore:.*not used")
def test_columns_of_two_data_sets(tmp_path):
    types = {"original_image": "image", "source_image": "image", "edit_prompt": "string", "edited_image": "image"}
    table(types).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(MRCError, match="several known data sets"):
        open_triplets(tmp_path)
    assert np.array_equal(
        open_triplets(tmp_path, columns="source=source_image")[1].source, value("image", "source_image", 1)
    )


@pytest.mark.parametrize("text", ["", "source", "source=", "picture=a", "source=a,source=b", "source=a,edited=a"])
def test_columns_of_another_form(text):
    with pytest.raises(MRCError, match="--columns has"):
        parse_columns(text)


def test_metadata_lines_of_other_columns(tmp_path):
    for name in ("a", "b"):
        picture(ord(name)).save(tmp_path / f"{name}.png")
    row = {"before_file_name": "a.png", "after_file_name": "b.png", "text": "swap", "url": "x"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.warns(UserWarning, match="not used: url"):
        triplet = open_triplets(tmp_path, columns=GIVEN)[0]
    assert triplet.instruction == "swap" and np.array_equal(triplet.source, picture(ord("a")))


def test_members_of_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="the dev extra is not installed")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "0", "before.png": picture(1), "after.png": picture(2), "json": {"text": "swap"}})
    triplet = open_triplets(tmp_path, columns=GIVEN)[0]
    assert triplet.instruction == "swap" and np.array_equal(triplet.edited, picture(2))


def test_data_without_columns(tmp_path):
    with pytest.raises(MRCError, match="miniature world has no columns"):
        open_data("miniature:4", columns="source=a")
    write_triplets([open_data("miniature:1")[0]], tmp_path / "data", "folders")
    with pytest.raises(MRCError, match="goes with tables and tar shards"):
        open_triplets(tmp_path / "data", columns="source=a")
