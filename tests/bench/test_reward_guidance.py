import json

import pytest
from PIL import Image

from mrc_edit.bench import reward_guidance
from mrc_edit.core.errors import MRCError
from mrc_edit.core.reward import PERSPECTIVES


def run(*arguments):
    reward_guidance.run(reward_guidance.arguments().parse_args([*map(str, arguments)]))


def test_one_command_gives_table_report_and_figure(tiny, tmp_path, capsys):
    run("--model", tiny, "--scenes", 3, "--steps", 1, "--guidance", "1,3", "--lower", "quality",
        "--json", tmp_path / "r.json", "--plot", tmp_path / "r.png")  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["scenes"], report["lowered"]) == (3, "quality")
    rows = report["rows"]
    strengths = [5, 4, 3, 2, 1, 0]
    assert [(r["guidance_scale"], r["strength"]) for r in rows] == [(g, s) for g in (1, 3) for s in strengths]
    for row in rows:
        if row["strength"] == 5 or row["guidance_scale"] == 1:  # as released; no other branches to ask
            assert all(row[name]["change"] == 0 for name in PERSPECTIVES)
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + 2 + len(rows)
    assert Image.open(tmp_path / "r.png").size[0] > 1000


@pytest.mark.parametrize(("change", "word"), [(("--scenes", 0), "--scenes"), (("--guidance", "high"), "--guidance")])
def test_what_cannot_be_measured(tiny, change, word):
    with pytest.raises(MRCError, match=word):
        run("--model", tiny, *change)
