"""Every layout that a version of transformers wrote gives the token ids that transformers gives."""

import json

import pytest
from transformers import CLIPTokenizer

from mrc_edit.core.errors import MRCError
from mrc_edit.model.seeded import byte_tokenizer
from mrc_edit.model.tokenizer import load_tokenizer

TEXTS = ("", "it snows", "Make it <|endoftext|> a cät's 12!", "a <cat-toy> b", "x" * 90, "<|startoftext|>hi")
FLAGS = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
NAMES = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
AS_2022 = {name: {"__type": "AddedToken", "content": text, **FLAGS} for name, text in NAMES.items()}
SETTINGS = {
    "transformers 4.20": AS_2022 | {"pad_token": "<|endoftext|>", "model_max_length": 77, "do_lower_case": True},
    "transformers 4.40": NAMES
    | {
        "pad_token": "!",
        "model_max_length": 77,
        "added_tokens_decoder": {"514": {"content": "<|startoftext|>", "special": True, **FLAGS},
                                 "515": {"content": "<|endoftext|>", "special": True, **FLAGS}},
    },
}  # fmt: skip


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def settings(version):
    def change(folder):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS[version]))

    return change


def specials(folder):
    settings("transformers 4.20")(folder)
    values = {name: {"content": text, **FLAGS} for name, text in NAMES.items()} | {"pad_token": "!"}
    (folder / "special_tokens_map.json").write_text(json.dumps(values))


def added(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<cat-toy>"])
    tokenizer.save_pretrained(folder)


def added_long_ago(folder):
    settings("transformers 4.20")(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 516}))


def truncating(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer("x", padding="max_length", max_length=9, truncation=True)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: None, id="all files"),
        pytest.param(remove("vocab.json", "merges.txt"), id="transformers 5"),
        pytest.param(remove("tokenizer.json"), id="vocabulary and merges"),
        pytest.param(settings("transformers 4.20"), id="transformers 4.20"),
        pytest.param(settings("transformers 4.40"), id="transformers 4.40"),
        pytest.param(specials, id="special tokens of Stable Diffusion 2"),
        pytest.param(added, id="with an added token"),
        pytest.param(added_long_ago, id="with an added token of old"),
        pytest.param(truncating, id="saved after it had cut a text"),
    ],
)
def test_ids_are_those_of_transformers(change, tmp_path):
    tokenizer = byte_tokenizer([("c", "a"), ("ca", "t</w>")])
    tokenizer.save_pretrained(tmp_path)
    tokenizer.backend_tokenizer.model.save(str(tmp_path))
    change(tmp_path)
    theirs, ours = CLIPTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert ours.backend_tokenizer.truncation is None and ours.backend_tokenizer.padding is None
    assert ours.model_max_length == theirs.model_max_length == 77
    for text in TEXTS:
        ids = [each(text, padding="max_length", max_length=77, truncation=True).input_ids for each in (ours, theirs)]
        assert ids[0] == ids[1], text
    assert ours.pad_token_id == theirs.pad_token_id and len(ours) == len(theirs)


@pytest.mark.parametrize(
    ("key", "file"),
    [("vocab", "vocab.json"), ("vocab_file", "vocab.json"), ("merges", "merges.txt"), ("merges_file", "merges.txt"),
     ("tokenizer_file", "tokenizer.json"), ("name_or_path", "")],
)  # fmt: skip
def test_no_file_outside_is_read(key, file, tmp_path):
    """The settings may name any file."""
    for folder in ("own", "other"):
        byte_tokenizer([("o", "t")] if folder == "other" else ()).save_pretrained(tmp_path / folder)
    other = load_tokenizer(tmp_path / "other")
    other.backend_tokenizer.model.save(str(tmp_path / "other"))
    config = json.loads((tmp_path / "own" / "tokenizer_config.json").read_text())
    config[key] = str(tmp_path / "other" / file)
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(config))
    assert "ot" in other.get_vocab() and "ot" not in load_tokenizer(tmp_path / "own").get_vocab()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{", "not JSON"),
        ("tokenizer.json", "{}", "no CLIP tokenizer"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": 7}}', "no CLIP tokenizer"),
        ("tokenizer_config.json", '{"model_max_length": "long"}', "model_max_length is 'long'"),
        ("tokenizer_config.json", '{"pad_token": 7}', "no CLIP tokenizer"),
        ("tokenizer_config.json", "[]", "not an object"),
        ("vocab.json", "{}", "merges.txt is missing beside vocab.json"),
    ],
)
def test_damaged_files(file, content, message, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(MRCError, match=message):
        load_tokenizer(tmp_path)
