import json

import pytest
from PIL import Image

from mrc_edit.bench.real_edit.items import TYPES, digest, read_items
from mrc_edit.core.errors import MRCError


def test_both_label_styles_are_read(data):
    items, _ = read_items(data)
    assert [item.type for item in items] == 2 * list(TYPES)
    assert items[7].instruction == "local <1> & 10.png" and items[7].name == "10-1-local"
    assert len({item.seed for item in items}) == 14


@pytest.mark.parametrize("entry", ["1. Local: a: b", "Local: a: b", "  3 . LOCAL edit :  a: b ", "1.local:a: b"])
def test_labels_are_read_with_and_without_number(tmp_path, entry):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "x.json").write_text(json.dumps({"a.png": [entry]}))
    ((item,), left_out) = read_items(tmp_path)
    assert not left_out
    assert (item.type, item.instruction, item.number) == ("local", "a: b", 1)


def test_the_digest_is_of_content_and_not_of_order(data, tmp_path):
    items, _ = read_items(data)
    assert digest(items) == digest(items[::-1]) != digest(items[1:])
    image = tmp_path / items[0].image.name
    Image.open(items[0].image).rotate(90).save(image)
    other = [type(item)(image, item.number, item.type, item.instruction) for item in items[:7]]
    assert digest(items[:7]) != digest(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.png": ["1. Locale: x"]}, "edit types are local"),
        ({"a.png": ["1. Local:"]}, "1. Local:"),
        ({"a.png": [5]}, "5 is no instruction"),
        ({"a.png": ["1. Local: a face \ud83d"]}, "is no instruction"),
        ({"a.png": [" " * 300_000 + "x"]}, "is no instruction"),
        ({"a.png": ["1" * 300_000 + " " * 300_000]}, "is no instruction"),
        ({"a.png": [[[[[[[[[1]]]]]]]]]}, "is no instruction"),
        ({"a.png": None}, "not of the form"),
        ({"a\0.png": ["1. Local: x"]}, "is missing"),
        ({"a" * 5000: ["1. Local: x"]}, "is missing"),
        ({"\ud800.png": ["1. Local: x"]}, "is missing"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object"),
        ({"b.png": ["1. Local: x"]}, "b.png is missing"),
        ({"../a.png": ["1. Local: x"]}, "no plain file name"),
        ({"a.png": "1. Local: x"}, "not of the form"),
        ({"a.png": []}, "no instructions"),
        ({}, "it is empty"),
        ("{", "not JSON"),
    ],
)
def test_bad_content_is_named(tmp_path, content, message):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "x.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(MRCError, match=message):
        read_items(tmp_path)


def test_a_bad_item_is_named_and_left_out(tmp_path):
    """Also an image whose files in the run would be those of another."""
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    entries = {"a.png": ["Local: x", "Locale: y", "Add: z"], "a.jpg": ["Style: s"], "c.png": ["Add: x"], "b.png": None}
    (tmp_path / "x.json").write_text(json.dumps(entries))
    items, left_out = read_items(tmp_path)
    assert [item.name for item in items] == ["a-1-local", "a-3-add"]
    expected = ("'Locale: y' is no instruction", "a.jpg and a.png have one stem", "c.png is missing", "b.png is not of")
    assert len(left_out) == 4 and all(a in b for a, b in zip(expected, left_out, strict=True))


def test_the_folder_must_hold_one_json_file(tmp_path):
    with pytest.raises(MRCError, match="holds none"):
        read_items(tmp_path)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(MRCError, match=r"a\.json, b\.json"):
        read_items(tmp_path)
    with pytest.raises(MRCError, match="no folder"):
        read_items(tmp_path / "a.json")
