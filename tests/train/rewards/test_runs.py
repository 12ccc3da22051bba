"""A run folder from somebody else: only what is whole is used, and only files inside it."""

import copy
import json
import os

import pytest
from PIL import Image

from mrc_edit.bench.real_edit.proxies import METRICS
from mrc_edit.core.errors import MRCError
from mrc_edit.train.rewards.runs import read_run

ITEM = {
    "name": "a-1-local", "image": "a.png", "number": 1, "type": "local", "instruction": "make it red", "seed": 1,
    "source": "sources/a.png", "edit": "edits/a.png",
    "reward": {"scores": [1, None, 5], "verdicts": [False, None, True], "texts": ["x", None, "None"],
               "failures": [None, "no reply", None]},
    "proxies": dict.fromkeys(METRICS, 1.0) | {"psnr": None},
}  # fmt: skip
RESULTS = {"run": {"data": "d", "model": "m"}, "judge": {"model": "j"}, "items": [ITEM]}
GONE = "gone"


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    for place in ("sources", "edits"):
        (run / place).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(run / place / "a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "outside.png")
    (run / "edits" / "b").mkdir()
    for place in (".", "edits/b"):
        Image.new("RGB", (8, 8), "red").save(run / place / "a.png")
    (run / "edits" / "link.png").symlink_to(tmp_path / "outside.png")
    (run / "edits" / "page.html").write_text("<script>")
    os.mkfifo(run / "edits" / "pipe.png")
    return run


def write(folder, results):
    (folder / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))


def changed(path, value):
    """RESULTS with another value at a path of keys."""
    results = copy.deepcopy(RESULTS)
    place = results
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return results


def test_a_whole_run(folder):
    write(folder, RESULTS)
    assert read_run(folder) == read_run(folder, METRICS) == RESULTS


def test_a_run_without_a_judge(folder):
    write(folder, changed(("judge",), GONE))
    assert read_run(folder, METRICS)["judge"] is None


BASIC = [
    *[((key,), value) for key in ("run", "items") for value in (GONE, None, [], {}, 5, "x")],
    (("judge",), "x"), (("items",), [5]), (("items",), [ITEM, ITEM]), (("run", "data"), 5),
    *[(("items", 0, key), value) for key in ("name", "instruction", "source", "edit") for value in (GONE, None, 5, [])],
    *[(("items", 0, key), value) for key in ("source", "edit") for value in (
        "../outside.png", "/etc/passwd", "edits/link.png", "edits/pipe.png", "edits/page.html", "edits",
        "a.png", "edits/b/a.png", "edits/../edits/a.png", "./edits/a.png",
        "", "a\0b",
        "\ud800.png", "x" * 5000, "none.png")],
    *[(("items", 0, "reward"), value) for value in (5, [], {}, {"scores": None}, {"scores": [1, 2]})],
    *[(("items", 0, "reward", "scores", 0), value) for value in ("1", 6, -1, True, [], float("nan"), 10**400)],
]  # fmt: skip
COMPARED = [
    *[(("items", 0, "type"), value) for value in (GONE, None, 5, [], 'local"><script>')],
    *[(("items", 0, "image"), value) for value in (GONE, 5)],
    *[(("items", 0, "proxies"), value) for value in (GONE, None, [], {}, dict.fromkeys(METRICS, "1"))],
    (("items", 0, "proxies", "noise"), float("inf")), (("items", 0, "proxies", "noise"), 10**400),
    (("items", 0, "reward"), None), (("items", 0, "reward", "verdicts"), [True, None, 5]),
    (("items", 0, "reward", "verdicts"), [None, None, True]), (("items", 0, "reward", "texts"), ["x", 5, None]),
    (("items", 0, "reward", "failures"), GONE),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), BASIC, ids=str)
def test_what_no_page_is_made_of(folder, path, value):
    write(folder, changed(path, value))
    for metrics in (None, METRICS):
        with pytest.raises(MRCError, match=r"results\.json is damaged"):
            read_run(folder, metrics)


@pytest.mark.parametrize(("path", "value"), COMPARED, ids=str)
def test_what_is_not_compared(folder, path, value):
    write(folder, changed(path, value))
    assert read_run(folder)
    with pytest.raises(MRCError, match=r"results\.json is damaged: item 0"):
        read_run(folder, METRICS)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "[" * 100_000, '{"items":' * 50_000])
def test_what_is_no_results_file(folder, text):
    write(folder, text)
    with pytest.raises(MRCError, match=r"results\.json"):
        read_run(folder)
