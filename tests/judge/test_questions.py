import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mrc_edit.judge
from mrc_edit.core.reward import PERSPECTIVES
from mrc_edit.judge.questions import VERSION, questions, repeated


@pytest.fixture
def pictures():
    return [Image.fromarray(np.full((8, 6, 3), value, np.uint8)) for value in (10, 200)]


def urls(messages):
    return [part["image_url"]["url"] for part in messages[1]["content"] if part["type"] == "image_url"]


def test_every_perspective_has_its_own_words_and_quality_sees_the_edit_alone(pictures):
    asked = [question.messages() for question in questions(*pictures, "make it red")]
    assert len({messages[0]["content"] for messages in asked}) == len(PERSPECTIVES)
    source, edited = urls(asked[0])
    assert urls(asked[1]) == [source, edited] and urls(asked[2]) == [edited] and source != edited
    assert [("make it red" in str(messages)) for messages in asked] == [True, True, False]


def test_keys_follow_what_is_asked(pictures):
    def keys(*asked):
        return [question.key for question in questions(*asked)]

    source, edited = pictures
    first = keys(source, edited, "make it red")
    assert len(set(first)) == 3 and keys(source.copy(), edited.copy(), "make it red") == first
    assert [a == b for a, b in zip(first, keys(source, edited, "make it blue"), strict=True)] == [False, False, True]
    assert [a == b for a, b in zip(first, keys(edited, edited, "make it red"), strict=True)] == [False, False, True]
    assert not set(first) & set(keys(source, source, "make it red"))
    turned = Image.fromarray(np.asarray(edited).reshape(6, 8, 3))  # the same bytes in another shape
    assert keys(source, turned, "make it red")[2] != first[2]


def test_an_unusable_reply_is_shown_with_its_fault(pictures):
    question = questions(*pictures, "make it red")[0]
    messages = repeated(question, [("7", "the score is 7"), ("", "the reply is empty")])
    assert messages[:2] == question.messages()
    assert [message["role"] for message in messages[2:]] == ["assistant", "user"] * 2
    assert "the score is 7" in messages[3]["content"] and "the reply is empty" in messages[5]["content"]
    assert all(message["content"] for message in messages)


def test_prompts_that_change_have_another_version():
    folder = Path(mrc_edit.judge.__file__).parent / "prompts"
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.txt")))).hexdigest()[:16]
    assert {VERSION: digest} == {1: "2524b7e7f14b7090"}, "raise questions.VERSION, and write the new digest here"
