import csv
import json
import re

import pytest
from PIL import Image

from mrc_edit.bench import quality
from mrc_edit.bench.miniature import fault_texts, reward_texts, summary
from mrc_edit.core.errors import MRCError
from mrc_edit.train.miniature.photographs import load_photographs
from mrc_edit.train.miniature.triplets import held_out


def test_summary_counts_passes_from_four_up():
    import numpy as np

    table = summary(np.array([[5, 4, 3], [3, 4, 3]]), ["local", "style"])
    assert [table[name]["pass"] for name in ("following", "preserving", "quality")] == [50, 100, 0]
    assert table["following_by_kind"] == {"local": 100, "style": 0}


def test_low_scores_are_asked_for_with_the_faults_of_the_scene():
    photographs = load_photographs()
    edits = held_out(photographs, 14)  # two of each kind
    faults = [fault_texts(edit, photographs) for edit in edits]
    assert [texts[2] for texts in faults] == ["the picture became purple"] * 14
    undone = [
        f"the {edit.source.things[edit.touched[0]].shape} did not change"
        for edit in edits
        if edit.kind in ("remove", "texture")
    ]
    assert [texts[0] for edit, texts in zip(edits, faults, strict=True) if edit.kind in ("remove", "texture")] == undone
    assert all(texts[0] == "nothing was added" for edit, texts in zip(edits, faults, strict=True) if edit.kind == "add")
    # nothing of a whole picture must stay, its fault has no name of its own
    assert {texts[1] for edit, texts in zip(edits, faults, strict=True) if edit.whole} == {
        "the rest of the picture changed"
    }
    assert any(texts[1] == "the background became dark" for texts in faults)
    assert reward_texts((5, 1, 5), faults[:1]) == [f"None; {faults[0][1]}; None"]
    assert set(reward_texts((5, 5, 5), faults)) == {"None; None; None"}


def run(*arguments):
    quality.run(quality.arguments().parse_args(["--world", "miniature", *map(str, arguments)]))


def test_one_command_gives_the_whole_table(tiny, plain, tmp_path, capsys):
    record = {"config": {"stage": 2}, "versions": {}, "seconds": 1, "broken": [], "loss_every_50_steps": [[0, 0.5]]}
    (tmp_path / "training.json").write_text(json.dumps(record))
    run("--model", tiny, "--baseline", plain, "--scenes", 7, "--steps", 1, "--json", tmp_path / "q.json",
        "--csv", tmp_path / "q.csv", "--run", tmp_path, "--picture", tmp_path / "q.png")  # fmt: skip
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "q.json").read_text())
    rows = ["baseline", "MRC 5,5,5", "MRC 1,1,1", "MRC 1,5,5", "MRC 5,1,5", "MRC 5,5,1"]
    assert list(report["rows"]) == rows and report["scenes"] == 7
    assert all(name in out for name in rows) and len(out.strip().splitlines()) == 8
    table = list(csv.DictReader((tmp_path / "q.csv").open()))
    assert [row["name"] for row in table] == rows
    assert [float(row["quality_mean"]) for row in table] == [report["rows"][name]["quality"]["mean"] for name in rows]
    assert Image.open(tmp_path / "q.png").size == (160 * (1 + len(rows)), 180 * 7)  # before and rows; kinds
    page = (tmp_path / "report.html").read_text()
    assert all(f"<th>{name}</th>" in page for name in rows)


def test_what_cannot_be_measured(tmp_path):
    for arguments, message in (
        (("--model", tmp_path), str(tmp_path)),
        (("--model", tmp_path, "--scenes", 0), "--scenes"),
        (("--model", tmp_path, "--run", tmp_path), "no training.json"),
        (("--model", tmp_path, "--photographs", tmp_path), "holds no"),
    ):
        with pytest.raises(MRCError, match=re.escape(message)):
            run(*arguments)
