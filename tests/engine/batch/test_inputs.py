"""What a batch reads: tables, parquet and tar files, and what is wrong in them."""

import io
import json
import tarfile

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.batch.inputs import open_items


def read(place, count=1):
    return [(item.key, item.instruction, item.read()) for item in open_items(str(place), count)]


@pytest.fixture
def expected(folder):
    made = folder(2)
    return made, [(str(i), f"thing {i}", (made / f"{i}.png").read_bytes()) for i in range(2)]


ROWS = [{"image": f"{i}.png", "instruction": f"thing {i}"} for i in range(2)]
TWO_KINDS = {"image": "0.png", "instruction": "a", "input_image": "1.png", "edit_prompt": "b"}


def lines(image, instruction):
    """The rows as JSON lines with other columns."""
    return "\n".join(json.dumps({image: row["image"], instruction: row["instruction"]}) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("instructions.json", json.dumps(ROWS)),
        ("instructions.json", json.dumps({f"{i}.png": f"thing {i}" for i in range(2)})),
        ("instructions.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("metadata.jsonl", lines("file_name", "instruction")),
        ("metadata.jsonl", lines("source_image_file_name", "edit_prompt")),
        ("instructions.csv", "\ufeffinstruction,image\nthing 0,0.png\n\"thing 1\",1.png\n"),
    ],
)  # fmt: skip
def test_a_table_beside_the_images(expected, name, text):
    made, items = expected
    (made / "instructions.json").unlink()
    (made / name).write_text(text)
    assert read(made) == read(made / name) == items


@pytest.mark.parametrize("quoted", ['1.png,"make it red, and blue"', ""])
def test_a_text_that_commas_cut_is_an_item_with_a_problem(expected, quoted):
    made, _ = expected
    (made / "table.csv").write_text(f"image,instruction\n0.png,make it red, and blue\n{quoted}")
    cut, *others = open_items(str(made / "table.csv"), 1)
    assert cut.key == "table.csv row 1" and "more values than there are columns" in cut.problem
    assert [(item.instruction, item.problem) for item in others] == [("make it red, and blue", "")] * bool(quoted)


def test_several_instructions_and_several_edits_of_an_image(expected):
    made, _ = expected
    (made / "instructions.json").write_text(json.dumps({"0.png": ["3. Add Edit: a", "b: c"], "1.png": ["d"]}))
    assert [item[:2] for item in read(made)] == [("0-1", "a"), ("0-2", "b: c"), ("1", "d")]
    assert [item[0] for item in read(made, 2)] == ["0-1-1", "0-1-2", "0-2-1", "0-2-2", "1-1", "1-2"]


def test_keys_of_their_own(expected):
    made, _ = expected
    rows = [row | {"key": f"a/{i}"} for i, row in enumerate(ROWS)]
    (made / "instructions.json").write_text(json.dumps(rows))
    assert [item[0] for item in read(made)] == ["a/0", "a/1"]


@pytest.mark.parametrize("form", ["bytes", "struct", "path"])
def test_parquet(expected, form):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet is read by pyarrow")
    from pyarrow import parquet

    made, items = expected
    images = [data if form == "bytes" else {"bytes": data, "path": None} for _, _, data in items]
    images = ["0.png", "1.png"] if form == "path" else images
    table = pyarrow.table({"source_img": images, "instruction": [item[1] for item in items]})
    parquet.write_table(table, made / "a.parquet", row_group_size=1)
    named = [(f"a-{int(key):07d}", *rest) for key, *rest in items]
    assert read(made / "a.parquet") == named
    (made / "instructions.json").unlink()
    assert read(made) == named


def test_tar_files(shards):
    items = open_items(shards(2, 2), 1)
    assert [(item.key, item.instruction, item.problem) for item in items] == [
        (f"{i:04d}", f"thing {i}", "") for i in range(4)
    ]
    assert len({item.shard for item in items}) == 2 and all(item.read().startswith(b"\x89PNG") for item in items)


def test_samples_that_cannot_be_used_are_items_with_a_problem(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("a.txt", b"\xff"), ("b.json", b"{"), ("c.json", b'{"edit": 3}'), ("d.png", b""), (".e.txt", b"x"),
            ("../f.txt", b"x"), ("g.txt", b"x"), ("/h.txt", b"x"),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: 512 * 15] + b"x" * 512)  # damaged behind the last
    items = open_items(str(tmp_path / "a.tar"), 1)
    assert [item.key for item in items if not item.problem] == ["g", "h"]
    told = " ".join(item.problem for item in items)
    assert all(word in told for word in ("not UTF-8", "not JSON", "has 3", "no json", "hidden", "damaged"))


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"instructions.json": "3"}, "give {"),
        ({"instructions.json": "{"}, "not JSON"),
        ({"instructions.json": "[]"}, "must have one of"),
        ({"instructions.json": '[{"picture": "0.png"}]'}, "must have one of"),
        ({"instructions.json": json.dumps([TWO_KINDS])}, "must have one of"),
        ({"instructions.csv": "image,instruction\n0.png,a\n", "instructions.json": "{}"}, "must have one of"),
        ({"instructions.json": '{"0.png": ["a", "b"], "0-1.png": "c"}'}, "2 items of"),
        ({"instructions.csv": "\xff", "encoding": "latin-1"}, "CSV in UTF-8"),
        ({"a.tar": "x"}, "cannot be read as an uncompressed tar file"),
        ({"a.parquet": "x"}, "cannot be read as a table"),
        ({}, "it has none"),
    ],
)  # fmt: skip
def test_no_input_is_one_clear_error(tmp_path, files, word):
    encoding = files.pop("encoding", "utf-8")
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding)
    with pytest.raises(MRCError, match=word.replace("{", r"\{")):
        open_items(str(tmp_path), 1)


def test_columns_that_are_not_used_are_named(expected):
    made, _ = expected
    (made / "instructions.json").write_text(json.dumps([row | {"size": 3} for row in ROWS]))
    with pytest.warns(UserWarning, match="not used: size"):
        open_items(str(made), 1)
