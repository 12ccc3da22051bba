import argparse
import base64
import html
import io
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.train.rewards import sheet
from mrc_edit.train.rewards.answers import read_answers
from mrc_edit.train.rewards.sheet import write_sheet

NAMES = [f"{i}-1-local" for i in range(12)]


def make_run(folder, scores, data="d"):
    """A run folder; its pictures are of one colour, which tells run and item."""
    (folder / "edits").mkdir(parents=True)
    (folder / "sources").mkdir()
    items = []
    for i, (name, given) in enumerate(zip(NAMES, scores, strict=True)):
        level = {"first": 100, "second": 200}[folder.name] + i
        for place, value in (("edits", level), ("sources", i)):
            Image.new("RGB", (6, 4), (value, 0, 0)).save(folder / place / f"{name}.png")
        reward = None if given is None else {"scores": given}
        items.append({"name": name, "instruction": f"<{i}> & more", "source": f"sources/{name}.png",
                      "edit": f"edits/{name}.png", "reward": reward})  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"run": {"data": data}, "items": items}))
    return folder


@pytest.fixture
def runs(tmp_path):
    chance = np.random.RandomState(5)
    first, second = ([[int(s) for s in chance.randint(0, 6, 3)] for _ in NAMES] for _ in "AB")
    second[3] = None
    first[4][2] = None
    return make_run(tmp_path / "first", first), make_run(tmp_path / "second", second)


def answer(folder, choose, name="answers.json"):
    """Answers of a rater who is told the sides: `choose(row, left)`."""
    key = json.loads((folder / "key.json").read_text())
    answers = {str(number): given for number, row in enumerate(key["rows"]) if (given := choose(row, row["left"]))}
    (folder / name).write_text(json.dumps({"sheet": key["sheet"], "answers": answers}))
    return folder / name


def pictures(page):
    """Red levels of source, left and right of every row, as the page shows them."""
    urls = re.findall(r'src="data:image/webp;base64,([^"]*)"', page)
    reds = [Image.open(io.BytesIO(base64.b64decode(url))).convert("RGB").getpixel((0, 0))[0] for url in urls]
    return [tuple(reds[i : i + 3]) for i in range(0, len(reds), 3)]


def test_the_page_is_blind_and_the_key_opens_it(runs, tmp_path):
    page = write_sheet(*runs, tmp_path / "sheet").read_text()
    key = json.loads((tmp_path / "sheet" / "key.json").read_text())
    assert sorted(row["name"] for row in key["rows"]) == sorted(NAMES)
    assert [row["name"] for row in key["rows"]] != NAMES and {row["left"] for row in key["rows"]} == {"A", "B"}
    for row, (source, left, right) in zip(key["rows"], pictures(page), strict=True):
        i = NAMES.index(row["name"])
        assert (source, left, right) == ((i, 100 + i, 200 + i) if row["left"] == "A" else (i, 200 + i, 100 + i))
    for secret in ("first", "second", *NAMES, "scores"):
        assert secret not in page
    assert html.escape("<3> & more") in page and "<3>" not in page and "http" not in page


def test_the_seed_decides(runs, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_sheet(*runs, tmp_path / name, seed=seed)
    a, b, c = ([(tmp_path / n / f).read_bytes() for f in ("key.json", "sheet.html")] for n in "abc")
    assert a == b and a[0] != c[0]
    write_sheet(*runs, tmp_path / "few", count=5)
    assert len(json.loads((tmp_path / "few" / "key.json").read_text())["rows"]) == 5


def test_answers_are_unblinded(runs, tmp_path):
    write_sheet(*runs, tmp_path / "sheet")

    def always_second(row, left):
        return {"following": "right" if left == "A" else "left", "preserving": "equal"}

    report = read_answers(tmp_path / "sheet" / "key.json", [answer(tmp_path / "sheet", always_second)])
    following, quality = report["following"], report["quality"]
    assert (following["A"], following["B"], following["equal"], following["rows"]) == (0, 12, 0, 12)
    assert following["p"] == pytest.approx(2 / 2**12) and following["tau"] is None
    assert (report["preserving"]["equal"], report["preserving"]["p"]) == (12, 1)
    assert (quality["answered"], quality["judged"], quality["tau"]) == (0, 0, None)
    assert (report["A"], report["B"]) == ("first", "second")


def test_agreement_is_kendalls_tau(runs, tmp_path):
    write_sheet(*runs, tmp_path / "sheet")

    def like_the_judge(row, left):
        first, second = (one and one[0] for one in row["scores"])
        if first is None or second is None or first == second:
            return {"following": "equal"}
        return {"following": "left" if (first > second) == (left == "A") else "right"}

    def the_other_way(row, left):
        said = like_the_judge(row, left)["following"]
        return {"following": {"left": "right", "right": "left", "equal": "equal"}[said]}

    key, rows = tmp_path / "sheet" / "key.json", json.loads((tmp_path / "sheet" / "key.json").read_text())["rows"]
    differences = [b[0] - a[0] for a, b in (row["scores"] for row in rows) if b is not None]
    expected = stats.kendalltau(np.sign(differences), differences)
    files = [
        answer(tmp_path / "sheet", choose, f"{i}.json") for i, choose in enumerate((like_the_judge, the_other_way))
    ]
    agreed, opposed = (read_answers(key, [file])["following"] for file in files)
    assert (
        agreed["judged"] == 11 and agreed["tau"] == pytest.approx(expected.statistic, abs=1e-4) and agreed["tau"] > 0.8
    )
    assert agreed["tau_p"] == pytest.approx(expected.pvalue) and opposed["tau"] == -agreed["tau"]
    both = read_answers(key, files)
    assert both["raters"] == 2 and both["following"]["equal"] == 12  # they cancel out


def test_the_page_works_in_a_browser(runs, tmp_path, browser):
    page = write_sheet(*runs, tmp_path / "sheet")
    steps = """
    for (const [name, value] of [["0-following", "left"], ["0-quality", "equal"], ["11-following", "right"]])
      document.querySelector(`input[name="${name}"][value="${value}"]`).click()
    document.addEventListener("click", event => event.target.download && event.preventDefault())  // a download waits
    document.querySelector("button").click()"""
    dom = browser(page, steps)
    assert "<output>3 of 36 answered</output>" in dom
    link = re.search(r'href="data:application/json,([^"]*)" download="answers-(\w+)\.json"', dom)
    (tmp_path / "answers.json").write_text(unquote(html.unescape(link[1])))
    report = read_answers(tmp_path / "sheet" / "key.json", [tmp_path / "answers.json"])
    assert (report["following"]["answered"], report["quality"]["answered"]) == (2, 1)
    assert report["quality"]["equal"] == 1 and link[2] == report["sheet"]


def command(capsys, *arguments):
    parser = argparse.ArgumentParser()
    sheet.add_arguments(parser)
    code = run_command(lambda: sheet.run(parser.parse_args([str(one) for one in arguments])))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command(runs, tmp_path, capsys):
    folder = tmp_path / "sheet"
    assert command(capsys, *runs, "--out", folder, "--seed", 3)[:2] == (0, f"{folder / 'sheet.html'}\n")
    given = answer(folder, lambda row, left: {"quality": "left"})
    code, out, _ = command(capsys, "--key", folder / "key.json", "--answers", given)
    assert code == 0 and "| following | 0 of 12 |" in out and "| quality | 12 of 12 |" in out
    code, out, _ = command(capsys, "--key", folder / "key.json", "--answers", given, "--json")
    assert code == 0 and json.loads(out)["quality"]["answered"] == 12


def test_what_cannot_be_used(runs, tmp_path, capsys):
    folder = tmp_path / "sheet"
    write_sheet(*runs, folder)
    key = folder / "key.json"
    other = make_run(tmp_path / "other" / "second", [None] * 12, data="other")
    sheet_id = json.loads(key.read_text())["sheet"]
    files = {}
    for name, content in (
        ("foreign", {"sheet": "x", "answers": {}}),
        ("row", {"sheet": sheet_id, "answers": {"12": {}}}),
        ("choice", {"sheet": sheet_id, "answers": {"0": {"following": "both"}}}),
        ("list", []),
    ):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(content))
    for arguments, message in (
        ((), "--out"),
        ((runs[0], "--out", folder), "two runs"),
        ((*runs, "--out", tmp_path / "new", "--count", 13), "--count is 13"),
        ((*runs, "--out", folder, "--seed", 1), "another sheet"),
        ((runs[0], other, "--out", tmp_path / "new"), "other data"),
        ((runs[0], tmp_path, "--out", tmp_path / "new"), "is missing"),
        (("--key", key, "--answers", files["foreign"]), "no answers to sheet"),
        (("--key", key, "--answers", files["list"]), "not an object"),
        (("--key", key, "--answers", files["row"]), "row '12'"),
        (("--key", key, "--answers", files["choice"]), "'both'"),
        (("--key", key, "--answers", tmp_path / "none.json"), "is missing"),
    ):
        code, _, err = command(capsys, *arguments)
        assert code == 2 and message in err, (arguments, err)
    assert not (tmp_path / "new").exists()
    files["row"].write_text("{")
    with pytest.raises(MRCError, match="cannot be read"):
        read_answers(key, [files["row"]])


@pytest.mark.parametrize(
    ("name", "value"),
    [("sheet", None), ("A", 5), ("rows", None), ("rows", []), ("rows", [5]), ("rows", [{}]),
     *(("rows", [{"left": left, "scores": scores}]) for left, scores in (
         ("C", [None, None]), ("A", None), ("A", [None]), ("A", [[1], [2]]), ("A", [[1, 2, "3"], None]), ("A", {}),
         (["A"], [None, None]), ("A", [[1, 2, 9], [1, 2, 3]])))],
)  # fmt: skip
def test_a_key_of_another_form_is_named(runs, tmp_path, name, value):
    write_sheet(*runs, tmp_path / "sheet")
    path, given = tmp_path / "sheet" / "key.json", answer(tmp_path / "sheet", lambda row, left: {"quality": "left"})
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(MRCError, match=r"key\.json|other sheet|no answers to sheet"):
        read_answers(path, [given])


def test_a_sheet_takes_pictures_of_the_run_alone_and_escapes_texts(runs, tmp_path):
    first, second = runs
    results = json.loads((first / "results.json").read_text())
    results["items"][0]["instruction"] = evil = "<script>alert(1)</script>\ud83d$rows"
    (first / "results.json").write_text(json.dumps(results))
    page = write_sheet(first, second, tmp_path / "sheet").read_text()
    assert html.escape(evil[:-6]) in page and "<script>alert" not in page and "?$rows" in page
    Image.new("RGB", (6, 4)).save(tmp_path / "outside.png")
    results["items"][0]["edit"] = "../outside.png"
    (first / "results.json").write_text(json.dumps(results))
    with pytest.raises(MRCError, match="leads out of"):
        write_sheet(first, second, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_items_that_one_run_left_out_are_not_asked_for(runs, tmp_path):
    results = json.loads((runs[1] / "results.json").read_text())
    items = results["items"]
    (runs[1] / "results.json").write_text(json.dumps(results | {"items": items[1:]}))
    write_sheet(*runs, tmp_path / "sheet")
    rows = json.loads((tmp_path / "sheet" / "key.json").read_text())["rows"]
    assert sorted(row["name"] for row in rows) == sorted(item["name"] for item in items[1:])
    renamed = [item | {"name": f"other {i}"} for i, item in enumerate(items)]
    (runs[1] / "results.json").write_text(json.dumps(results | {"items": renamed}))
    with pytest.raises(MRCError, match="no item in common"):
        write_sheet(*runs, tmp_path / "none")
