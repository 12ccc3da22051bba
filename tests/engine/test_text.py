import numpy as np
import pytest

from mrc_edit.engine.text import tokenize


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
