import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.train.data import make_triplet, open_triplets
from mrc_edit.train.data.writers import FORMATS, write_triplets


def picture(seed: int, size=(96, 64)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size)


@pytest.fixture
def triplets():
    return [
        make_triplet(str(i), picture(i), picture(i + 100), f"make it {i}", (i, 5, 2), f"fault {i}; None; blurred")
        for i in range(5)
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_round_trip(form, triplets, tmp_path):
    write_triplets(triplets, tmp_path / "data", form)
    found = open_triplets(tmp_path / "data")
    assert len(found) == 5
    for i, expected in enumerate(triplets):
        got = found[i]
        assert (got.instruction, got.scores, got.reward_text) == (
            expected.instruction, expected.scores, expected.reward_text,
        )  # fmt: skip
        for a, b in ((got.source, expected.source), (got.edited, expected.edited)):
            difference = np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).mean()
            assert difference < (4 if form == "folders" else 0.01)  # JPEG against PNG


@pytest.mark.parametrize("form", FORMATS)
def test_without_rewards(form, triplets, tmp_path):
    bare = [make_triplet(t.id, t.source, t.edited, t.instruction) for t in triplets]
    write_triplets(bare, tmp_path / "data", form)
    assert open_triplets(tmp_path / "data")[3].scores is None


def test_released_layout(tmp_path):
    for folder in ("0000002", "0000001"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prompt.json").write_text(json.dumps({"edit": ["first", "second"]}))
        for seed in ("917", "23"):
            picture(int(seed)).save(tmp_path / folder / f"{seed}_0.jpg")
            picture(1).save(tmp_path / folder / f"{seed}_1.jpg")
    found = open_triplets(tmp_path)
    assert [found[i].id for i in range(4)] == ["0000001/23", "0000001/917", "0000002/23", "0000002/917"]
    assert found[0].instruction == "first"
    rewards = {"0000002": [{"Score": n, "Negative Prompt": t} for n, t in ((3, "None"), (1, "dog gone"), (5, "None"))]}
    (tmp_path / "r.json").write_text(json.dumps(rewards))
    found = open_triplets(tmp_path, tmp_path / "r.json")
    assert len(found) == 1
    assert (found[0].id, found[0].scores, found[0].reward_text) == ("0000002/23", (3, 1, 5), "None; dog gone; None")


def test_shards_of_the_webdataset_package(triplets, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as tar:
        for t in triplets:
            tar.write(
                {"__key__": t.id, "source.png": np.asarray(t.source), "edited.png": np.asarray(t.edited),
                 "json": {"edit": t.instruction, "scores": t.scores, "reward_text": t.reward_text}}
            )  # fmt: skip
    found = open_triplets(tmp_path)
    assert [found[i].instruction for i in range(len(found))] == [t.instruction for t in triplets]
    assert np.array_equal(np.asarray(found[2].edited), np.asarray(triplets[2].edited))


def test_metadata_lines(tmp_path):
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "b.png")
    row = {"original_image": "a.png", "edited_image": "b.png", "edit_prompt": "swap", "reward_scores": [1, 2, 3.5],
           "reward_text": "a; b; c"}  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert open_triplets(tmp_path)[0].scores == (1, 2, 3.5)
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row | {"original_image": "../a.png"}) + "\n")
    with pytest.raises(MRCError, match="leads out of"):
        open_triplets(tmp_path)[0]


def test_nothing_there(tmp_path):
    with pytest.raises(MRCError, match="looked for"):
        open_triplets(tmp_path)
    with pytest.raises(MRCError, match="does not exist"):
        open_triplets(tmp_path / "none")
    tarfile.open(tmp_path / "a.tar", "w").close()
    with pytest.raises(MRCError, match="holds no sample"):
        open_triplets(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(MRCError, match="tar"):
        open_triplets(tmp_path)


@pytest.mark.parametrize(
    "scores", ["555", ("a", 1, 2), (True, 1, 2), (float("nan"), 1, 2), (1, 2), (-1, 0, 0), (5.1, 0, 0)]
)
def test_scores_that_are_none(scores):
    with pytest.raises(MRCError, match="sample x"):
        make_triplet("x", picture(1), picture(2), "edit", scores, "None; None; None")


def test_broken_samples_are_named(triplets, tmp_path):
    write_triplets(triplets, tmp_path / "data", "folders")
    (tmp_path / "data" / "0000001" / "0_1.jpg").write_bytes(b"no picture")
    (tmp_path / "data" / "0000002" / "prompt.json").write_text("{}")
    found = open_triplets(tmp_path / "data")
    for index, message in ((1, "0000001.*edited image"), (2, "0000002.*prompt.json")):
        with pytest.raises(MRCError, match=message):
            found[index]
    assert found[4].instruction == "make it 4"


def test_links_out_of_the_data_are_refused(triplets, tmp_path):
    write_triplets(triplets, tmp_path / "data", "folders")
    picture(3).save(tmp_path / "outside.jpg")
    (tmp_path / "data" / "0000000" / "0_0.jpg").unlink()
    (tmp_path / "data" / "0000000" / "0_0.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(MRCError, match="leads out of"):
        open_triplets(tmp_path / "data")[0]


def test_shards_packed_from_a_folder(triplets, tmp_path):
    """`tar -cf x.tar .` puts ./ before every name, and folders may have dots."""
    write_triplets(triplets, tmp_path / "data", "shards")
    with tarfile.open(tmp_path / "data" / "00000.tar") as tar:
        tar.extractall(tmp_path / "loose" / "a.v1", filter="data")
    (tmp_path / "again").mkdir()
    with tarfile.open(tmp_path / "again" / "x.tar", "w") as tar:
        tar.add(tmp_path / "loose", ".")
    found = open_triplets(tmp_path / "again")
    assert [found[i].instruction for i in range(len(found))] == [triplet.instruction for triplet in triplets]


def test_an_image_folder_that_datasets_loads(triplets, tmp_path):
    import datasets

    folder = tmp_path / "train"
    folder.mkdir()
    rows = []
    for triplet in triplets:
        row = {"edit_prompt": triplet.instruction}
        for column, image in (("original_image", triplet.source), ("edited_image", triplet.edited)):
            name = f"{triplet.id}_{column}.png"
            image.save(folder / name)
            row[f"{column}_file_name"] = name
        rows.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "c"))
    found = open_triplets(folder)
    assert len(found) == len(theirs) == 5
    for i in range(5):
        assert np.array_equal(np.asarray(found[i].edited), np.asarray(theirs[i]["edited_image"]))


def test_nothing_is_written_over(triplets, tmp_path):
    with pytest.raises(MRCError, match="exists already"):
        write_triplets(triplets, tmp_path, "parquet")


def test_a_column_that_holds_no_images(tmp_path):
    import datasets

    row = {"original_image": 3, "edit_prompt": "snow", "edited_image": 4}
    datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(MRCError, match="no images"):
        open_triplets(tmp_path)
