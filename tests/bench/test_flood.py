"""The flood: its attacks get what they must, wrk's answers are counted, and a law that is broken is named."""

import importlib.util
import shutil

import pytest

from mrc_edit.bench import flood
from mrc_edit.bench.attacks import ATTACKS, Outcome, attack
from mrc_edit.bench.serving import request_body, serving

QUIET = {"edits": 100.0}
FLOOD = {"edits": 81.0, "other": None, "memory_start": 500.0, "memory_end": 510.0}


@pytest.fixture(scope="module")
def server():
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: pip install 'mrc-edit[serve]'")
    with serving("mini", ["--read-timeout", "0.5", "--max-waiting", "2"]) as started:
        yield started


@pytest.mark.parametrize("name", ATTACKS)
def test_an_idle_server_answers_every_attack(server, name):
    outcome = attack(name, server[0], 0.5)
    assert (outcome.answer, outcome.tries) == (ATTACKS[name].answer, 1)


def test_wrk_counts_every_answer(server, tmp_path):
    """Of six clients on two places some are edited and some refused, as the server itself counts."""
    if shutil.which("wrk") is None:
        pytest.skip("no wrk: apt-get install wrk")
    files = tmp_path / "body", tmp_path / "script.lua"
    files[0].write_bytes(request_body(64, 2))
    files[1].write_text(flood.SCRIPT)
    row = flood.load(*server, files, 6, 2)
    assert row["edits"] > 0 and row["refused"] > 0 and row["other"] is None
    assert row["cpu"] > 0 and row["memory_end"] > 50


def test_a_law_that_is_broken_is_named():
    good = flood.bad_rows({name: [Outcome(ATTACKS[name].answer, 1.0, 1)] for name in ATTACKS})
    assert flood.broken([QUIET, QUIET], FLOOD, good) == []
    for changes, fault in (
        ({"edits": 79.0}, "throughput fell to 79%"),
        ({"other": "2 × 500"}, "2 × 500"),
        ({"memory_end": 530.0}, "memory grew"),
    ):
        (named,) = flood.broken([QUIET, QUIET], FLOOD | changes, good)
        assert fault in named


@pytest.mark.parametrize(
    ("outcomes", "right"),
    [
        ([Outcome("400", 4.9, 3), Outcome("429", 1.0, 9)], "yes"),
        ([Outcome("400", 5.1, 1)], "no"),
        ([Outcome("400", 1.0, 1), Outcome("500", 1.0, 1)], "no"),
        ([], "no"),
    ],
)
def test_an_attack_gets_its_answer_in_time_or_is_refused(outcomes, right):
    (row,) = flood.bad_rows({"a bomb": outcomes})
    assert row["right"] == right


def test_a_refusal_is_no_answer_to_what_has_no_chance():
    (row,) = flood.bad_rows({"30 MB": [Outcome("429", 0.1, 1)]})
    assert row["right"] == "no"
