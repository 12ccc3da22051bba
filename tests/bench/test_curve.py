import json

import pytest

from mrc_edit.bench import curve
from mrc_edit.core.errors import MRCError


def run(*arguments):
    curve.run(curve.arguments().parse_args(list(map(str, arguments))))


def test_one_command_gives_table_and_figure(tiny, student, tmp_path, capsys):
    run("--teacher", tiny, "--student", student, "--backend", "torch", "--precision", "float32",
        "--tiers", "exact,fast", "--steps", "2,1", "--student-steps", 1, "--guidance", 3, "--scheduler", "euler",
        "--scenes", 1, "--rounds", 1, "--json", tmp_path / "c.json", "--csv", tmp_path / "c.csv",
        "--plot", tmp_path / "c.png")  # fmt: skip
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    expected = [("teacher, float32", 2), ("teacher, float32", 1), ("teacher, float32, fast", 2),
                ("teacher, float32, fast", 1), ("student, float32", 1), ("student, float32, fast", 1)]  # fmt: skip
    assert [(row["line"], row["steps"]) for row in rows] == expected
    assert all(row["seconds"] > 0 and 0 <= row["quality"]["mean"] <= 5 for row in rows)
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 1 + len(rows) and (tmp_path / "c.png").is_file()
    assert "student, float32, fast" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [((), "nothing to measure"), (("--student", "x", "--tiers", "quick"), "--tiers has 'quick'"),
     (("--student", "x", "--scenes", 0), "--scenes is 0")],
)  # fmt: skip
def test_options_that_cannot_be(wrong, message):
    with pytest.raises(MRCError, match=message):
        run(*wrong)
