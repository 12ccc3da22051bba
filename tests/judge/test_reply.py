import json
import time

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.judge.reply import Answer, Reply, read_answer, read_completion


def reply(score, verdict="no", failure="the tail vanished"):
    return json.dumps({"failure": failure, "verdict": verdict, "score": score})


@pytest.mark.parametrize(
    ("value", "score"),
    [(0, 0), (5, 5), (4.0, 4), ("4", 4), (" 3 ", 3), ("4.0", 4), ("4/5", 4), ("4 / 5", 4), ("2 out of 5", 2),
     ("3-4", 3), ("3–4", 3), ("3 to 4", 3), ("3-4/5", 3)],
)  # fmt: skip
def test_scores(value, score):
    assert read_answer(reply(value)) == Answer(score, False, "the tail vanished")


@pytest.mark.parametrize(
    "value",
    [7, -1, 6, 3.5, "3.5", "", None, True, [4], {"a": 4}, "four", "1-4", "4-3", "4-4", "4/10", "5-6", "44", "NaN"],
)
def test_what_is_no_score(value):
    with pytest.raises(MRCError, match="score is"):
        read_answer(reply(value))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_json_that_is_none(constant):
    with pytest.raises(MRCError, match=f"score is '{constant}'"):
        read_answer(f'{{"failure": "None", "verdict": "yes", "score": {constant}}}')


@pytest.mark.parametrize(
    "text",
    [
        "```json\n@\n```",
        "Let me see {carefully}: @ and {that} is all.",
        "<think>perhaps " + reply(1) + "</think>\n@",
        '{"judgement": @}',
        "\n\n @",
    ],
)
def test_what_stands_around_the_object(text):
    assert read_answer(text.replace("@", reply(4))).score == 4


def test_keys_in_capitals():
    assert read_answer('{"Score": "4", "Verdict": "Yes.", "Failure": null}') == Answer(4, True, "None")


def test_lines_instead_of_json():
    headed = "## Failure:\nthe cat vanished\n\n**Verdict**\t=\r\n no\n_Score_ : **2**"
    assert read_answer(headed) == Answer(2, False, "the cat vanished")
    text = "I looked at it.\n**Score:** 4/5\n- Verdict: Yes.\nFailure = the cat; it vanished"
    assert read_answer(text) == Answer(4, True, "the cat, it vanished")
    with pytest.raises(MRCError, match="-1"):
        read_answer(text.replace("4/5", "-1"))


@pytest.mark.parametrize(("value", "verdict"), [("yes", True), ("No.", False), (True, True), ("FALSE", False)])
def test_verdicts(value, verdict):
    assert read_answer(reply(3, value)).verdict is verdict


@pytest.mark.parametrize("value", ["maybe", "", None, 1, "yes and no"])
def test_what_is_no_verdict(value):
    with pytest.raises(MRCError, match="verdict is"):
        read_answer(reply(3, value))


@pytest.mark.parametrize("value", ["None", "none.", "", "N/A", None, "no failure"])
def test_nothing_went_wrong(value):
    assert read_answer(reply(5, "yes", value)).text == "None"


def test_a_failure_fits_into_a_reward_text():
    assert read_answer(reply(2, failure=" the dog;\nthe  cat ")).text == "the dog, the cat"
    with pytest.raises(MRCError, match="failure is"):
        read_answer(reply(2, failure=["the dog"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("4", "no failure, verdict, score"),
        ("A lovely picture.", "no failure"),
        ('{"rating": 4, "verdict": "yes"}', "no failure"),
        ('{"failure": "None", "verdict": "yes", "score": 4', "no failure"),
        ("[4, 5]", "no failure"),
        ('{"a":' * 3000, "no failure"),
        (reply(4, failure="x" * 30_000), "characters"),
    ],
)
def test_what_is_no_judgement(text, message):
    with pytest.raises(MRCError, match=message):
        read_answer(text)


def completion(content, tokens=5):
    return json.dumps({"choices": [{"message": {"content": content}}], "usage": {"total_tokens": tokens}}).encode()


def test_a_completion():
    assert read_completion(completion("said")) == Reply("said", 5)
    assert read_completion(b'{"choices": [{"message": {"content": null}}]}') == Reply("", None)


@pytest.mark.parametrize(
    "body",
    [b"", b"[" * 100_000, b'{"choices":' * 100_000, b"<html>", b"\xff\xfe\x00", b"{}", b"[]", b'{"choices": []}',
     b'{"choices": [{"message": "said"}]}', b'{"choices": {"0": 1}}', completion(["said"]), completion({"text": "x"}),
     completion("said", "5"), completion("said", -1), completion("said", True), completion("said", 10**12),
     completion("said", 1.5), b"1" * 5000],
)  # fmt: skip
def test_what_is_no_completion(body):
    with pytest.raises(MRCError, match=r"response|reply"):
        read_completion(body)


def test_halves_of_surrogate_pairs_and_control_characters_are_replaced():
    """Models cut the escapes of emoji; no file in UTF-8 holds a half, and a terminal obeys some others."""
    assert read_completion(completion("a \ud83d b \ud83d\ude00")).text == "a \ufffd b 😀"
    written = '{"failure": "a face \\ud83d is\\u001b[2J \\u0000gone \\ud83d\\ude00", "verdict": "no", "score": 2}'
    assert read_answer(written).text == "a face \ufffd is\ufffd[2J \ufffdgone 😀"


@pytest.mark.parametrize(
    "text",
    ["\n" * 20_000, "*" * 20_000, "score: b" + "*" * 19_000 + "a", "score" + " " * 19_000, "score:" * 3000,
     '{"a":' * 4000, "{" * 20_000, '{"{' * 6000, '{"failure": "", "verdict": "yes", "score": "4' + " " * 19_000 + 'x"}',
     '{"failure": "", "verdict": "yes", "score": ' + "[" * 900 + "]" * 900 + "}"],
)  # fmt: skip
def test_no_reply_takes_long_to_read(text):
    """None takes a tenth of a second but the nested ones, which take half; a quadratic reading takes many."""
    started = time.process_time()
    with pytest.raises(MRCError):
        read_answer(text)
    assert time.process_time() - started < 5
