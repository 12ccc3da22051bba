import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.text import MAX_CHARACTERS, tokenize, whole_texts


def test_ids_are_those_of_transformers(eager):
    tokenizer = eager.backend.checkpoint.tokenizer
    texts = ["make it snow", "", "Ünïcode, punctuation! 42", "  many   spaces ", "日本語"]
    expected = tokenizer(texts, padding="max_length", max_length=77, return_tensors="np").input_ids
    np.testing.assert_array_equal(tokenize(eager.backend.tokenizer, texts, eager.backend.geometry), expected)


def test_a_long_text_is_cut_with_a_warning_that_shows_what(eager):
    geometry = eager.backend.geometry
    text = "a" * 75 + "bcd"
    with pytest.warns(UserWarning, match="cut: 'bcd'"):
        ids = tokenize(eager.backend.tokenizer, [text], geometry)
    expected = eager.backend.checkpoint.tokenizer(text, max_length=77, truncation=True, return_tensors="np").input_ids
    np.testing.assert_array_equal(ids, expected)
    assert ids[0, -1] == geometry.eos_token_id


def test_the_longest_text_that_fits_is_whole(eager, recwarn):
    tokenize(eager.backend.tokenizer, ["a" * 75], eager.backend.geometry)
    assert not recwarn.list


@pytest.fixture(scope="module")
def mini():
    return Engine.from_pretrained("mini").backend


def test_truncation_that_was_saved_cuts_nothing_in_silence(mini):
    """As transformers leaves it in tokenizer.json, `mini`'s own among them."""
    saved = Tokenizer.from_str(mini.tokenizer.to_str())
    saved.enable_truncation(8)
    saved.enable_padding(length=8)
    with pytest.warns(UserWarning, match="202 tokens long and the model reads 40; cut: .*characters more"):
        ids = tokenize(whole_texts(saved), ["make it red and " * 50], mini.geometry)
    with pytest.warns(UserWarning, match="202 tokens"):
        np.testing.assert_array_equal(tokenize(mini.tokenizer, ["make it red and " * 50], mini.geometry), ids)
    assert saved.truncation["max_length"] == 8  # a copy was changed


@pytest.mark.parametrize("backend", ["onnxruntime", "eager", "torch", "openvino"])
def test_no_backend_cuts_in_silence(backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    tokenizer = Engine.from_pretrained("mini", backend).backend.tokenizer
    assert tokenizer.truncation is None and tokenizer.padding is None


@pytest.mark.parametrize("name", ["instruction", "reward_text", "reward_guidance_text"])
def test_a_text_that_takes_long_is_refused_before_it_is_read(mini, photo, monkeypatch, name):
    monkeypatch.setattr("mrc_edit.engine.text.encode", lambda *_: pytest.fail("tokenized"))
    with pytest.raises(MRCError, match=f"{name} has 10,001 characters") as caught:
        Engine(mini).edit(photo, **{"instruction": "snow", name: "x" * (MAX_CHARACTERS + 1)})
    assert caught.value.argument == name


def test_a_panic_of_the_library_is_an_error(mini):
    """Its regular expressions backtrack, and beyond a limit it panics, which is no Exception."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(Regex("(a+)+$"), "x")
    with pytest.raises(MRCError, match="tokenizer cannot read 'aaa"):
        tokenize(tokenizer, ["a" * 60 + "!"], mini.geometry)


def test_words_that_a_small_vocabulary_lacks_are_named(mini, recwarn):
    tokenize(mini.tokenizer, ["make the circle green", "None; the background became dark; None", ""], mini.geometry)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="not learned giraffe, 日本; it knows"):
        tokenize(mini.tokenizer, ["turn the giraffe and a giraffe into 日本"], mini.geometry)


def test_models_that_read_pieces_know_all_words(mini, eager, recwarn):
    tokenize(eager.backend.tokenizer, ["a giraffe"], eager.backend.geometry)  # of bytes alone
    large = Tokenizer.from_str(mini.tokenizer.to_str())
    large.add_tokens([f"<word{i}>" for i in range(5_000)])
    tokenize(large, ["a giraffe"], mini.geometry)
    assert not recwarn.list
