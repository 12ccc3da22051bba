"""The model as judge, against a real server that misbehaves as the model's name says."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.judge.endpoint import ATTEMPTS, SILENCE, Endpoint, retry_after
from mrc_edit.judge.options import JudgeOptions, open_judge
from mrc_edit.judge.spending import Spending, Stopped
from mrc_edit.judge.vision import ASKS, VisionJudge

KEY = "sk-test-0123456789abcdef"
USABLE = ("good", "prose", "lines", "string", "float", "range", "fraction", "fence", "slow")
UNUSABLE = ("talk", "bare", "seven", "half", "nan", "keys", "empty", "null")


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


EDIT = (picture(1), picture(2), "make it red")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def judge(judge_server, tmp_path):
    def make(model, timeout=5.0, **limits):
        endpoint = Endpoint(model, judge_server.url, Spending(**limits), timeout, backoff=0.001)
        return VisionJudge(endpoint, tmp_path / "replies")

    return make


def true_scores(server):
    """Of the questions, in the order in which they were first asked."""
    return tuple({entry["question"]: entry["score"] for entry in server.log}.values())


@pytest.mark.parametrize("model", USABLE)
def test_replies_that_can_be_used(judge, judge_server, model):
    reward = judge(model).score(*EDIT)
    assert reward.scores == true_scores(judge_server) and reward.usable
    assert reward.failures == (None,) * 3 and reward.tokens == 360 and len(judge_server.log) == 3
    assert [entry["images"] for entry in judge_server.log] == [2, 2, 1]
    assert all(isinstance(verdict, bool) for verdict in reward.verdicts) and all(reward.texts)


@pytest.mark.parametrize("model", UNUSABLE)
def test_replies_that_stay_unusable_are_failures(judge, judge_server, model):
    reward = judge(model).score(*EDIT)
    assert reward.scores == reward.verdicts == reward.texts == (None,) * 3 and not reward.usable
    assert all(failure.startswith("unusable: ") for failure in reward.failures)
    assert len(judge_server.log) == 3 * ASKS and reward.tokens == 120 * 3 * ASKS
    assert [entry["messages"] for entry in judge_server.log[:ASKS]] == [2, 4, 6]  # told what was wrong


@pytest.mark.parametrize("model", ["500", "close", "cut", "html"])
def test_no_reply_is_a_failure(judge, judge_server, model):
    reward = judge(model).score(*EDIT)
    assert reward.scores == (None,) * 3 and all(failure.startswith("no reply: ") for failure in reward.failures)
    assert len(judge_server.log) == 3 * ATTEMPTS
    judge("good").score(*EDIT)
    assert len(judge_server.log) == 3 * ATTEMPTS + 3, "another model's"
    before = len(judge_server.log)
    assert judge(model).score(*EDIT) == reward and len(judge_server.log) == before + 3 * ATTEMPTS, "asked again"


@pytest.mark.parametrize("model", ["500+good", "close+500+good", "cut+html+good", "talk+good", "seven+nan+good"])
def test_what_mends_itself(judge, judge_server, model):
    reward = judge(model).score(*EDIT)
    assert reward.scores == true_scores(judge_server)
    assert len(judge_server.log) == 3 * len(model.split("+"))


def test_a_server_that_hangs(judge, judge_server):
    reward = judge("hang+good", timeout=0.2).score(*EDIT)
    assert reward.scores == true_scores(judge_server) and len(judge_server.log) == 6


def test_a_reply_that_trickles_in_for_too_long(judge, judge_server):
    """Never a pause as long as the time-out: it is the whole that counts."""
    reward = judge("slow+good", timeout=0.4).score(*EDIT)
    assert reward.scores == true_scores(judge_server) and len(judge_server.log) == 6


def test_retry_after_is_waited_for(judge, judge_server):
    reward = judge("429+good").score(*EDIT)
    assert reward.scores == true_scores(judge_server)
    times = [entry["received"] for entry in judge_server.log]
    assert len(times) == 6 and all(times[i + 1] - times[i] >= 0.3 for i in (0, 2, 4))


def test_retry_after_in_both_forms():
    assert retry_after({"Retry-After": "2.5"}) == 2.5 and retry_after({}) == 0
    for date in ("Mon, 01 Jan 0001 00:00:00 -0000", "Mon, 01 Jan 2024 00:00:00 +9999999999999", "nan"):
        assert retry_after({"Retry-After": date}) == 0
    assert retry_after({"Retry-After": "soon"}) == 0 and retry_after({"Retry-After": "-3"}) == 0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2815 07:28:00 GMT"}) > 1e9


@pytest.mark.parametrize(
    ("model", "refused"),
    [("no_schema", "response_format"), ("no_temperature", "temperature"), ("no_max_tokens", "max_tokens")],
)
def test_options_that_a_server_refuses(judge, judge_server, model, refused, capsys):
    made = judge(model)
    for seed in (3, 4):
        assert made.score(picture(1), picture(seed), "make it red").usable
    options = [set(entry["options"]) for entry in judge_server.log]
    assert refused in options[0] and all(refused not in some for some in options[1:])
    assert len(options) == 7 and all(len(some) == 2 for some in options[1:])
    assert refused in capsys.readouterr().err


def test_a_request_that_is_refused_is_a_failure(judge, judge_server):
    reward = judge("400").score(*EDIT)
    assert reward.scores == (None,) * 3 and "it is a 400" in reward.failures[0]
    assert len(judge_server.log) == 6  # without options once more


def test_a_key_that_is_refused_ends_the_run(judge, judge_server):
    with pytest.raises(MRCError, match="OPENAI_API_KEY"):
        judge("401").score(*EDIT)
    assert len(judge_server.log) == 1


def test_a_server_that_has_gone_ends_the_run(judge, judge_server):
    made = judge("good")
    judge_server.stop()
    with pytest.raises(MRCError, match=f"{SILENCE} questions in a row"):
        for seed in range(SILENCE):
            reward = made.score(picture(1), picture(seed), "make it red")
            assert not reward.usable and "no reply" in reward.failures[0]


def test_what_was_answered_is_never_asked_again(judge, judge_server):
    rewards = [judge(model).score(*EDIT) for model in ("good", "nan")]
    asked = len(judge_server.log)
    judge_server.stop()
    assert [judge(model).score(*EDIT) for model in ("good", "nan")] == rewards
    assert len(judge_server.log) == asked


def test_equal_questions_at_the_same_time_are_asked_once(judge, judge_server):
    judge_server.service = 0.05
    made = judge("good")
    with ThreadPoolExecutor(8) as pool:
        rewards = list(pool.map(lambda _: made.score(*EDIT), range(8)))
    assert len(judge_server.log) == 3 and len({reward.scores for reward in rewards}) == 1


def test_a_damaged_reply_is_named(judge, tmp_path):
    judge("good").score(*EDIT)
    path = next((tmp_path / "replies").glob("*/*.json"))
    path.write_text(path.read_text()[:20])
    with pytest.raises(MRCError, match=path.name):
        judge("good").score(*EDIT)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "{}", '{"text": 5, "tokens": 1}', '{"text": "x", "tokens": "1"}', "\ud83d"]
)
def test_a_stored_reply_of_another_form_is_named(judge, tmp_path, content):
    judge("good").score(*EDIT)
    path = next((tmp_path / "replies").glob("*/*.json"))
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(MRCError, match=f"{path.name}.*delete it"):
        judge("good").score(*EDIT)


def test_a_stored_half_of_a_surrogate_pair_is_replaced(judge, tmp_path):
    """As earlier versions stored them."""
    judge("prose").score(*EDIT)
    for path in (tmp_path / "replies").glob("*/*.json"):
        path.write_text(path.read_text().replace("Let", "\\ud83d"))
    assert all(reply.startswith("\ufffd me see") for reply in judge("prose").score(*EDIT).replies)


def test_an_instruction_that_is_no_text_is_refused(judge, judge_server):
    with pytest.raises(MRCError, match="surrogate"):
        judge("good").score(picture(1), picture(2), "a face \ud83d")
    assert not judge_server.log


def test_limits(judge, judge_server):
    with pytest.raises(Stopped, match="--max-requests 2"):
        judge("good", max_requests=2).score(*EDIT)
    assert len(judge_server.log) == 2
    with pytest.raises(Stopped, match="--max-tokens 100"):
        judge("good+good", max_tokens=100).score(*EDIT)
    assert len(judge_server.log) == 3
    assert judge("good", max_requests=1).score(*EDIT).usable  # the one that was left
    with pytest.raises(MRCError, match="--max-tokens is 0"):
        Spending(max_tokens=0)


def test_a_limit_of_tokens_that_nobody_counts():
    with pytest.raises(MRCError, match="--max-requests instead"):
        Spending(max_tokens=5).reply(None)


def test_the_key_goes_to_the_server_and_nowhere_else(judge, judge_server, monkeypatch, tmp_path, caplog, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    caplog.set_level(logging.DEBUG)
    said = [judge(model).score(*EDIT) for model in ("good", "echo", "talk", "500+good")]
    with pytest.raises(MRCError) as refused:
        judge("401").score(*EDIT)
    assert {entry["authorization"] for entry in judge_server.log} == {f"Bearer {KEY}"}
    assert "[key]" in said[1].failures[0]
    stored = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert stored and caplog.text
    for text in (repr(said), repr(refused.value), stored, caplog.text, *capsys.readouterr()):
        assert KEY not in text


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        (None, "", "OPENAI_API_KEY"),
        ("localhost:8000/v1", "", "--base-url"),
        ("http://user:secret@localhost/v1", "", "--base-url"),
        ("ftp://localhost/v1", "", "--base-url"),
        (None, "sk-\n-broken", "OPENAI_API_KEY"),
        (None, "schlüssel", "OPENAI_API_KEY"),
        ("http://[::1/v1", "", "--base-url"),
        ("http://host:99999/v1", "", "--base-url"),
        ("http://host\x00/v1", "", "--base-url"),
        ("http:///v1", "", "--base-url"),
    ],
)
def test_access_that_cannot_be(url, key, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(MRCError, match=message) as error:
        Endpoint("m", url, Spending())
    assert "secret" not in str(error.value) and not (key and key in str(error.value))


def test_options_are_checked(tmp_path):
    with pytest.raises(MRCError, match="name the"):
        open_judge(JudgeOptions(), tmp_path, Spending())
    for wrong in ({"concurrency": 0}, {"timeout": 0.0}, {"timeout": float("nan")}):
        with pytest.raises(MRCError, match=next(iter(wrong))):
            JudgeOptions(**wrong)


def test_stored_replies_hold_what_was_said(judge, tmp_path):
    reward = judge("prose").score(*EDIT)
    stored = [json.loads(path.read_text()) for path in (tmp_path / "replies").glob("*/*.json")]
    assert sorted(entry["text"] for entry in stored) == sorted(reward.replies)
    assert all(entry["model"] == "prose" and entry["tokens"] == 120 for entry in stored)
