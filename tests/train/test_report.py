"""The page of a training run, of files that may be damaged or somebody else's."""

import json

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.core.reward import PERSPECTIVES
from mrc_edit.train.report import write_report

EVIL = "<script>alert(1)</script>"
CELL = {"mean": 4.5, "pass": 90.0, "interval": [80.5, 95.0]}
SCORES = {"settings": {"steps": EVIL}, "scenes": EVIL, "rows": {EVIL: dict.fromkeys(PERSPECTIVES, CELL)}}


@pytest.fixture
def out(tmp_path):
    record = {"config": {EVIL: EVIL}, "versions": {}, "seconds": 5, "broken": [], "loss_every_50_steps": [[0, 1.0]]}
    (tmp_path / "training.json").write_text(json.dumps(record))
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "mine.png").write_bytes(b"not of this run")
    return tmp_path


def test_all_texts_are_escaped(out):
    (out / "scores.json").write_text(json.dumps(SCORES))
    write_report(out)
    page = (out / "report.html").read_text()
    assert "<script" not in page and page.count("&lt;script") == 5 and "4.50, 90.0 % (80.5–95.0)" in page


@pytest.mark.parametrize(
    "scores",
    [{}, [], {"rows": None}, SCORES | {"rows": {"a": 5}}, SCORES | {"rows": {"a": {}}},
     SCORES | {"rows": {"a": dict.fromkeys(PERSPECTIVES, CELL | {"mean": EVIL})}},
     SCORES | {"rows": {"a": dict.fromkeys(PERSPECTIVES, CELL | {"interval": [EVIL, 1]})}},
     SCORES | {"rows": {"a": dict.fromkeys(PERSPECTIVES, CELL | {"interval": [1]})}}],
)  # fmt: skip
def test_a_damaged_table_is_named(out, scores):
    (out / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(MRCError, match=r"scores\.json"):
        write_report(out)
