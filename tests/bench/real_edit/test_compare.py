import json
import shutil

import pytest
from scipy import stats

from mrc_edit.bench.real_edit.compare import compare, judged_pairs, tables
from mrc_edit.bench.real_edit.run import judge_items, write_results
from mrc_edit.core.errors import MRCError
from mrc_edit.judge.spending import Spending


def pair(first, second, image="a", verdicts=None):
    yes = verdicts or (first is not None and first >= 4, second is not None and second >= 4)
    sides = zip((first, second), yes, strict=True)
    return tuple({"image": image, "reward": {"scores": [score], "verdicts": [ok]}} for score, ok in sides)


def test_judged_pairs_by_hand():
    scores = [(5, 3), (4, 0), (5, 1), (0, 5), (4, 4), (1, 1), (None, 5), (3, None)]
    row = judged_pairs([pair(*both, image=str(i)) for i, both in enumerate(scores)], 0)
    assert (row["n"], row["left_out"]) == (6, 2)
    assert row["passed_only_in"] == (3, 1) and row["accuracy"] == [66.7, 33.3]
    assert row["p_accuracy"] == pytest.approx(2 * (1 + 4) / 2**4)
    assert row["mean"] == [pytest.approx(19 / 6, abs=1e-4), pytest.approx(14 / 6, abs=1e-4)]
    assert row["difference"] == pytest.approx(-5 / 6, abs=1e-4)
    assert row["p_mean"] == stats.wilcoxon([-2, -4, -4, 5, 0, 0]).pvalue
    low, high = row["interval"]
    assert -4 <= low < row["difference"] < high <= 5


def test_no_pair_that_could_be_judged():
    assert judged_pairs([pair(None, 5)], 0) == {"n": 0, "left_out": 1}


@pytest.fixture
def runs(edited, fake_judge, tmp_path):
    """The same edits, judged with and without an unusable reply."""
    source, items = edited
    for name, unusable in (("first", ()), ("second", {items[0].instruction})):
        shutil.copytree(source, tmp_path / name)
        rewards = judge_items(fake_judge(unusable), items, tmp_path / name, 1, Spending())
        write_results(items, tmp_path / name, rewards, {"model": "fake", "prompts": 1})
    return tmp_path / "first", tmp_path / "second"


def test_equal_runs_do_not_differ(runs, tmp_path):
    report = compare(*runs, tmp_path / "out")
    quality = report["judged"]["overall"]["quality"]
    assert (quality["n"], quality["left_out"]) == (13, 1)
    assert (quality["difference"], quality["interval"]) == (0, [0, 0])
    assert (quality["p_mean"], quality["p_accuracy"]) == (1, 1)
    assert report["proxies"]["overall"]["noise"]["difference"] == 0
    assert report["proxies"]["style"]["psnr"] == {"n": 0, "left_out": 2}
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == json.loads(json.dumps(report))
    judged, proxies = (table.markdown() for table in tables(report))
    assert "| overall | quality | 13 | 1 |" in judged and "| noise | 14 |" in proxies


def test_the_page_holds_its_own_pictures(runs, tmp_path):
    compare(*runs, tmp_path / "out")
    compare(*runs, tmp_path / "out")  # again
    page = (tmp_path / "out" / "index.html").read_text()
    for run in runs:
        shutil.rmtree(run)
    for path in ("sources/10.png", "a/10-1-local.png", "b/10-1-local.png"):
        assert f'src="{path}"' in page and (tmp_path / "out" / path).is_file()


def test_what_cannot_be_compared(runs, edited, tmp_path):
    first, second = runs
    with pytest.raises(MRCError, match="has no results"):
        compare(first, tmp_path / "none", tmp_path / "out")
    results = json.loads((second / "results.json").read_text())
    for changed, message in (
        ({"judge": {"model": "other", "prompts": 1}}, "judged by"),
        ({"run": results["run"] | {"data": "other"}}, "other data"),
    ):
        (second / "results.json").write_text(json.dumps(results | changed))
        with pytest.raises(MRCError, match=message):
            compare(first, second, tmp_path / "out")
    with pytest.raises(MRCError, match="other things"):
        compare(first, first, first)
    (second / "results.json").write_text("{")
    with pytest.raises(MRCError, match="damaged"):
        compare(first, second, tmp_path / "out")


def test_a_comparison_takes_pictures_of_the_runs_alone(runs, tmp_path):
    first, second = runs
    results = json.loads((second / "results.json").read_text())
    shutil.copy(first / "edits" / "10-1-local.png", tmp_path / "outside.png")
    for picture in ("../outside.png", str(tmp_path / "outside.png"), "results.json"):
        results["items"][0]["edit"] = picture
        (second / "results.json").write_text(json.dumps(results))
        with pytest.raises(MRCError, match=r"leads out of|no PNG"):
            compare(first, second, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_items_of_one_run_alone_are_left_out_and_counted(runs, tmp_path):
    results = json.loads((runs[1] / "results.json").read_text())
    (runs[1] / "results.json").write_text(json.dumps(results | {"items": results["items"][1:]}))
    report = compare(*runs, tmp_path / "out")
    assert (report["left_out"], report["proxies"]["overall"]["noise"]["n"]) == (1, 13)
    assert "left out of all tables: 1" in tables(report)[-1].markdown()
    renamed = [one | {"name": f"other {i}"} for i, one in enumerate(results["items"])]
    (runs[1] / "results.json").write_text(json.dumps(results | {"items": renamed}))
    with pytest.raises(MRCError, match="no item in common"):
        compare(*runs, tmp_path / "none")


def test_without_a_judge_the_proxies_are_compared(edited, tmp_path):
    source, items = edited
    for name in ("first", "second"):
        shutil.copytree(source, tmp_path / name)
        write_results(items, tmp_path / name)
    report = compare(tmp_path / "first", tmp_path / "second", tmp_path / "out")
    assert report["judged"] is None and len(tables(report)) == 1
