"""Folders as data sets on the hub have them, written by `datasets`."""

import json

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.train.data import open_triplets

datasets = pytest.importorskip("datasets", reason="the train extra is not installed")
ROWS = 8


def picture(seed, size=(24, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def rows():
    columns = {
        "original_image": [picture([0, i]) for i in range(ROWS)],
        "edit_prompt": [f"make it {i}" for i in range(ROWS)],
        "edited_image": [picture([1, i]) for i in range(ROWS)],
    }
    image = datasets.Image()
    features = {"original_image": image, "edit_prompt": datasets.Value("string"), "edited_image": image}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def check(found, numbers=range(ROWS)):
    assert len(found) == len(numbers)
    for index, number in enumerate(numbers):
        triplet = found[index]
        assert triplet.instruction == f"make it {number}"
        assert np.array_equal(triplet.source, picture([0, number]))
        assert np.array_equal(triplet.edited, picture([1, number]))


def write_shards(rows, folder, split, count):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rows.shard(count, i, contiguous=True).to_parquet(str(folder / f"{split}-{i:05d}-of-{count:05d}.parquet"))


@pytest.mark.parametrize("split", ["train", "FreeForm"])
def test_many_shards_in_data(split, rows, tmp_path):
    write_shards(rows, tmp_path / "data", split, 8)
    check(open_triplets(tmp_path))


def test_splits_for_tests_are_left_out(rows, tmp_path):
    write_shards(rows.select(range(5)), tmp_path / "data", "train", 2)
    write_shards(rows.select(range(5, 8)), tmp_path / "data", "dev", 1)
    with pytest.warns(UserWarning, match="not used: the splits dev"):
        check(open_triplets(tmp_path), range(5))
    check(open_triplets(tmp_path / "data" / "dev-00000-of-00001.parquet"), range(5, 8))
    for file in (tmp_path / "data").glob("train-*"):
        file.unlink()
    with pytest.raises(MRCError, match="has only dev"):
        open_triplets(tmp_path)


def test_parts_that_are_no_splits_are_all_read(rows, tmp_path):
    for name, part in (("a", range(3)), ("b", range(3, 8))):
        rows.select(part).to_parquet(str(tmp_path / f"{name}.parquet"))
    check(open_triplets(tmp_path))


def test_a_saved_dictionary_of_splits(rows, tmp_path):
    splits = datasets.DatasetDict(train=rows.select(range(6)), test=rows.select(range(6, 8)))
    splits.save_to_disk(str(tmp_path / "saved"))
    check(open_triplets(tmp_path / "saved"), range(6))


def test_an_image_folder_of_a_split(rows, tmp_path):
    """`datasets` reads the same folder."""
    folder = tmp_path / "train"
    folder.mkdir()
    lines = []
    for number, row in enumerate(rows):
        files = {"original_image_file_name": f"{number}_0.png", "edited_image_file_name": f"{number}_1.png"}
        for name, image in zip(files.values(), (row["original_image"], row["edited_image"]), strict=True):
            image.save(folder / name)
        lines.append(json.dumps(files | {"edit_prompt": row["edit_prompt"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "c"))
    check(open_triplets(tmp_path))
    assert [row["edit_prompt"] for row in theirs] == [f"make it {i}" for i in range(ROWS)]


@pytest.fixture
def with_paths(rows, tmp_path):
    """A table that names its pictures instead of holding them; the function changes the path of row 3."""
    folder = tmp_path / "set" / "data"
    (folder / "pictures").mkdir(parents=True)

    def write(path=None, text=False):
        table = []
        for number, row in enumerate(rows):
            names = {column: f"pictures/{number}_{column}.png" for column in ("original_image", "edited_image")}
            for column, name in names.items():
                row[column].save(folder / name)
            if number == 3 and path is not None:
                names["edited_image"] = path
            images = {column: name if text else {"bytes": None, "path": name} for column, name in names.items()}
            table.append({"edit_prompt": row["edit_prompt"], **images})
        datasets.Dataset.from_list(table).to_parquet(str(folder / "train-00000-of-00001.parquet"))
        return tmp_path / "set"

    return write


@pytest.mark.parametrize("text", [False, True])
def test_paths_in_a_table(text, with_paths):
    check(open_triplets(with_paths(text=text)))


def test_paths_do_not_lead_out_of_the_folder(with_paths, tmp_path):
    picture(1).save(tmp_path / "outside.png")
    (tmp_path / "set" / "data" / "link.png").symlink_to(tmp_path / "outside.png")
    for path in ("../../outside.png", str(tmp_path / "outside.png"), "link.png"):
        found = open_triplets(with_paths(path))
        with pytest.raises(MRCError, match=r"^sample data row 3: .*leads out of"):
            found[3]
        assert found[4].instruction == "make it 4"
    for path in ("", "none.png"):
        with pytest.raises(MRCError, match=r"^sample data row 3: .*(has no image|is no file)"):
            open_triplets(with_paths(path))[3]
