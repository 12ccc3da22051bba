import pytest

from mrc_edit.core.adapters import parse_embeddings, parse_loras
from mrc_edit.core.errors import MRCError


def test_loras_are_files_and_scales():
    assert parse_loras([]) == {}
    given = ["a.safetensors:0.8", "dir/b:c.safetensors:-1", "peft:2"]
    assert parse_loras(given) == {"a.safetensors": 0.8, "dir/b:c.safetensors": -1, "peft": 2}


@pytest.mark.parametrize("value", ["a.safetensors", "a.safetensors:", ":0.8", "a:strong", ""])
def test_other_forms_of_a_lora(value):
    with pytest.raises(MRCError, match=r"--lora is .*; give FILE:SCALE"):
        parse_loras([value])


def test_embeddings_are_tokens_and_files():
    assert parse_embeddings(["<cat>=a=b.safetensors", "x=y"]) == {"<cat>": "a=b.safetensors", "x": "y"}


@pytest.mark.parametrize("value", ["<cat>", "<cat>=", "=a.safetensors", ""])
def test_other_forms_of_an_embedding(value):
    with pytest.raises(MRCError, match=r"--embedding is .*; give TOKEN=FILE"):
        parse_embeddings([value])


def test_one_twice():
    with pytest.raises(MRCError, match="has a twice; give it once"):
        parse_loras(["a:1", "a:2"])
    with pytest.raises(MRCError, match="has the token x twice"):
        parse_embeddings(["x=a", "x=b"])
