import pytest

from mrc_edit.bench.real_edit.report import judged_row, summary, tables


def item(kind, image, scores, psnr=None):
    reward = scores and {
        "scores": scores,
        "verdicts": [None if score is None else score >= 4 for score in scores],
        "texts": [None if score is None else "t" for score in scores],
        "failures": [None if score is not None else "unusable" for score in scores],
    }
    metrics = ("area", "psnr", "ssim", "structure", "colour", "blur", "noise", "clipped")
    proxies = dict.fromkeys(metrics, 1.0) | {"psnr": psnr}
    return {"type": kind, "image": image, "reward": reward, "proxies": proxies}


ITEMS = [
    item("local", "a", [5, 0, None], 20.0),
    item("local", "b", [4, 0, None], 30.0),
    item("style", "a", [1, 5, None]),
    item("style", "b", [0, 5, 4]),
]


def test_a_row_by_hand():
    row = judged_row(ITEMS)
    following = row["following"]
    assert (following["accuracy"], following["mean"], following["judged"]) == (50, 2.5, 4)
    assert following["accuracy_interval"] == (15.0, 85.0)  # Wilson, 2 of 4
    assert following["mean_interval"] == (2, 3)  # images a: 3, b: 2
    assert row["quality"] == {"judged": 1, "failures": 3, "accuracy": 100, "accuracy_interval": (20.7, 100), "mean": 4,
                              "mean_interval": (4, 4)}  # fmt: skip


def test_types_and_overall():
    found = summary(ITEMS)
    assert list(found["judged"]) == ["local", "style", "overall"]
    assert found["judged"]["local"]["preserving"]["accuracy"] == 0
    assert found["judged"]["style"]["preserving"]["accuracy"] == 100
    assert found["judged"]["local"]["quality"] == {"judged": 0, "failures": 2}
    assert found["proxies"]["overall"]["psnr"] == {"n": 2, "mean": 25}
    assert found["proxies"]["style"]["psnr"] == {"n": 0, "mean": None}


def test_published_figures_stand_marked_beside_ours():
    results = {"tables": summary(ITEMS), "judge": {"model": "m", "prompts": 1}, "tokens": 7, "left_out": []}
    judged, published, proxies = (table.markdown() for table in tables(results))
    assert "| this run | 50 % | 50 % | 100 % | measured here, 4 items |" in published
    assert "| SuperEdit | 67 % | 77 % | 65 % | published |" in published
    assert published.count("| published |") == 6 and "arXiv 2505.02370" in published
    assert "| 0 / 0 / 3 |" in judged and "| 0 / 0 / 2 |" in judged and "7 tokens" in judged
    assert "| local |" in judged and "| – |" in judged
    assert "Proxies" in proxies


@pytest.mark.parametrize("kind", ["local", "style"])
def test_without_a_judge(kind):
    results = {"tables": summary([item(kind, "a", None)]), "judge": None, "tokens": 0, "left_out": []}
    (proxies,) = tables(results)
    assert "no judge" in proxies.title
