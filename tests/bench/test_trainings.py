import json

import pytest

from mrc_edit.bench import trainings
from mrc_edit.core.errors import MRCError

RATES = {"baseline": (80, 50, 75), "MRC 5,5,5": (90, 85, 99), "MRC 1,1,1": (30, 44, 0), "MRC 1,5,5": (10, 85, 90),
         "MRC 5,1,5": (79, 34, 97), "MRC 5,5,1": (83, 87, 1)}  # fmt: skip


@pytest.fixture
def reports(tmp_path):
    """Of three trainings: the second's 5,5,5 follows a point more, the third's preserves as little as it follows."""
    paths = []
    for number in range(3):
        rates = RATES | ({"MRC 5,5,5": (91, 85, 99)} if number == 1 else {})
        rates |= {"MRC 5,1,5": (20, 34, 97)} if number == 2 else {}
        rows = {name: {p: {"pass": rate} for p, rate in zip(trainings.PERSPECTIVES, three, strict=True)}
                for name, three in rates.items()}  # fmt: skip
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps({"rows": rows}))
    return paths


def run(*arguments):
    trainings.run(trainings.arguments().parse_args([str(argument) for argument in arguments]))


def test_leads_and_drops_with_intervals_over_trainings(reports, tmp_path, capsys):
    run(*reports, "--json", tmp_path / "all.json")
    rows = {row["name"]: row for row in json.loads((tmp_path / "all.json").read_text())["rows"]}
    lead = rows["MRC 5,5,5 over the baseline"]
    # three values 10, 11, 10: their standard error is 1/3, and t with two degrees of freedom 4.303
    assert lead["following"] == pytest.approx(31 / 3)
    assert lead["following_low"] == pytest.approx(31 / 3 - 4.303 / 3, abs=1e-3)
    assert lead["following_high"] == pytest.approx(31 / 3 + 4.303 / 3, abs=1e-3)
    assert (lead["preserving"], lead["preserving_low"], lead["preserving_high"]) == (35, 35, 35)
    assert [rows[f"{name} against 5,5,5"]["own"] for name in trainings.LOW] == ["3 of 3", "2 of 3", "3 of 3"]
    assert "+10.3 (8.9 to 11.8)" in capsys.readouterr().out


def test_what_is_no_report(reports, tmp_path):
    with pytest.raises(MRCError, match="two or more"):
        run(reports[0])
    (tmp_path / "other.json").write_text('{"rows": {"MRC 5,5,5": {}}}')
    with pytest.raises(MRCError, match=r"other\.json has no such rates.*--baseline"):
        run(reports[0], tmp_path / "other.json")
