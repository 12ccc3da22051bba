"""Building reward data with a judge behind a real server."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.judge.options import JudgeOptions
from mrc_edit.judge.spending import Spending
from mrc_edit.train.config import TrainConfig
from mrc_edit.train.data import open_triplets
from mrc_edit.train.rewards.build import build
from mrc_edit.train.rewards.cluster import with_absolute_paths
from mrc_edit.train.rewards.command import main
from mrc_edit.train.rewards.config import BuildConfig

FILES = ("RewardEdit.json", "rewards.jsonl", "report.json", "triplets.parquet")
KILLS = int(os.environ.get("MRC_KILLS", "2"))


def contents(out):
    return {name: (Path(out) / name).read_bytes() for name in FILES}


def truth(server):
    """Scores of the questions that were answered at last, and how many were not."""
    last = {entry["question"]: entry for entry in server.log}
    usable = [entry["score"] for entry in last.values() if entry["behaviour"] in USABLE]
    return Counter(usable), len(last) - len(usable)


USABLE = ("good", "prose", "lines", "string", "float", "range", "fraction", "fence")


def test_totals_add_up_whatever_is_replied(triplets_of, judge_server, config):
    settings = config(triplets_of(40), "mixed")
    report = build(settings, Spending())
    lines = [json.loads(line) for line in (Path(settings.out) / "rewards.jsonl").read_text().splitlines()]
    assert report["triplets"] == len(lines) == 40 == report["complete"] + report["incomplete"]
    assert 0 < report["complete"] < 40
    scores = [score for line in lines for score in line["scores"]]
    given, failed = truth(judge_server)
    assert Counter(score for score in scores if score is not None) == given
    assert scores.count(None) == failed == sum(failure is not None for line in lines for failure in line["failures"])
    for i, row in enumerate(report["perspectives"].values()):
        column = [line["scores"][i] for line in lines if line["scores"][i] is not None]
        assert row["scored"] == len(column) and row["scored"] + row["failed"] == 40
        assert row["mean"] == pytest.approx(sum(column) / len(column), abs=1e-3)
        assert sum(row["failures"].values()) == row["failed"]
    assert report["tokens"] == 120 * len(judge_server.log)
    whole = [line for line in lines if None not in line["scores"]]
    found = open_triplets(settings.out)
    released = json.loads((Path(settings.out) / "RewardEdit.json").read_text())
    assert len(found) == len(whole) == len(released) == report["complete"]
    for i, line in enumerate(whole):
        assert found[i].scores == tuple(line["scores"]) and found[i].reward_text == "; ".join(line["texts"])
        assert found[i].instruction == line["instruction"]
        assert [part["Score"] for part in released[line["id"]]] == line["scores"]


def test_the_same_again_asks_nothing_and_writes_the_same(triplets_of, judge_server, config):
    settings = config(triplets_of(8), "mixed")
    build(settings, Spending())
    first = contents(settings.out)
    judge_server.stop()
    spending = Spending()
    build(settings, spending)
    assert contents(settings.out) == first and spending.requests == 0


@pytest.mark.parametrize("form", ["folders", "shards"])
def test_other_forms_of_data(form, triplets_of, config, plain, tmp_path):
    data = triplets_of(4, form)
    settings = config(data)
    assert build(settings, Spending())["complete"] == 4
    found = open_triplets(data, Path(settings.out) / "RewardEdit.json") if form == "folders" else None
    table = open_triplets(settings.out)
    for i in range(4):
        assert table[i].scores is not None
        if found is not None:
            assert (found[i].scores, found[i].reward_text) == (table[i].scores, table[i].reward_text)


def test_columns_as_for_training(triplets_of, config):
    table = pyarrow.parquet.read_table(triplets_of(2) / "triplets.parquet")
    names = {"original_image": "before", "edit_prompt": "text", "edited_image": "after"}
    data = triplets_of(1) / "other"
    data.mkdir()
    pyarrow.parquet.write_table(table.rename_columns(names), data / "t.parquet")
    settings = replace(config(data), columns="source=before,edited=after,instruction=text")
    assert build(settings, Spending())["complete"] == 2
    assert open_triplets(settings.out)[1].instruction == "make it 1"
    with pytest.raises(MRCError, match="was built from"):
        build(replace(settings, columns="source=after,edited=before,instruction=text"), Spending())


def test_a_folder_of_several_seeds_is_scored_by_its_lowest(triplets_of, config):
    data = triplets_of(2, "folders")
    for role in "01":
        (data / "0000000" / f"7_{role}.jpg").write_bytes((data / "0000001" / f"0_{role}.jpg").read_bytes())
    settings = config(data)
    assert build(settings, Spending())["complete"] == 3
    lines = [json.loads(line) for line in (Path(settings.out) / "rewards.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0000000/0", "0000000/7", "0000001/0"]
    released = json.loads((Path(settings.out) / "RewardEdit.json").read_text())
    assert [part["Score"] for part in released["0000000"]] == lines[0]["scores"] and len(released) == 2


def test_unreadable_triplets_are_counted(triplets_of, config, capsys):
    data = triplets_of(3, "folders")
    (data / "0000001" / "0_1.jpg").write_bytes(b"no picture")
    settings = config(data)
    report = build(settings, Spending())
    assert (report["triplets"], report["complete"], report["unreadable"]) == (3, 2, 1)
    line = (Path(settings.out) / "rewards.jsonl").read_text().splitlines()[1]
    reason = json.loads(line)["unreadable"]
    assert "0000001" in reason and f"left out: {reason}\n" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["parquet", "released"])
def test_what_comes_out_trains(source, triplets_of, config, plain, tmp_path):
    from mrc_edit.train.loop import train

    data = triplets_of(4, "folders", size=(64, 64))
    settings = config(data)
    build(settings, Spending())
    rewards = str(Path(settings.out) / "RewardEdit.json") if source == "released" else None
    run = TrainConfig(
        init=str(plain), data=str(data) if rewards else settings.out, rewards=rewards, out=str(tmp_path / "run"),
        stage=2, resolution=64, batch_size=2, steps=2, workers=0, tracker="", validate_every=0, augment=False,
    )  # fmt: skip
    checkpoint = train(run)
    assert "text_linear" in " ".join(keys_of(checkpoint))


def keys_of(checkpoint):
    from safetensors import safe_open

    with safe_open(checkpoint / "unet" / "diffusion_pytorch_model.safetensors", "np") as tensors:
        return tensors.keys()


def test_a_limit_stops_and_the_next_run_goes_on(triplets_of, judge_server, config):
    data = triplets_of(6)
    with pytest.raises(MRCError, match="--max-requests 7 is reached"):
        build(config(data), Spending(max_requests=7))
    assert len(judge_server.log) == 7 and not (Path(config(data).out) / "report.json").exists()
    assert build(config(data), Spending(max_requests=11))["complete"] == 6
    assert len(judge_server.log) == 18 and max(Counter(e["digest"] for e in judge_server.log).values()) == 1


def test_no_more_requests_at_a_time_than_asked_for(triplets_of, judge_server, config):
    judge_server.service = 0.02
    build(config(triplets_of(12), concurrency=3), Spending())
    assert most_at_a_time(judge_server.log) == 3


def most_at_a_time(log):
    steps = sorted([(entry["received"], 1) for entry in log] + [(entry["answered"], -1) for entry in log])
    running = [sum(step for _, step in steps[: i + 1]) for i in range(len(steps))]
    return max(running)


def test_what_cannot_be_built(triplets_of, config, judge_server):
    data = triplets_of(2)
    build(config(data), Spending())
    with pytest.raises(MRCError, match="was built from"):
        build(config(data, "other"), Spending())
    with pytest.raises(MRCError, match=r"no triplet could be judged.*report\.json"):
        build(config(data, "seven", out="seven"), Spending())
    out = Path(config(data, out="seven").out)
    report = json.loads((out / "report.json").read_text())
    assert report["incomplete"] == 2 and not (out / "triplets.parquet").exists()
    assert "score is 7" in next(iter(report["perspectives"]["quality"]["failures"]))
    for wrong, message in (
        ({"judge": "me"}, "choose"),
        ({"judge": "oracle"}, "miniature:N"),
        ({"model": None}, "--model"),
    ):
        with pytest.raises(MRCError, match=message):
            settings = config(data, wrong.get("model", "good"))
            type(settings)(settings.data, settings.out, settings.options, wrong.get("judge", "openai"))


def test_the_oracle_by_the_command_line(command, environment, tmp_path):
    arguments = [
        "build",
        "--data",
        "miniature:6",
        "--out",
        tmp_path / "o",
        "--judge",
        "oracle",
        "--json",
        "--seed",
        "5",
    ]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"] == 6
    from mrc_edit.train.data import open_data

    drawn, found = open_data("miniature:6", seed=5), open_triplets(tmp_path / "o")
    assert [found[i].scores for i in range(6)] == [drawn[i].scores for i in range(6)]
    assert [found[i].reward_text for i in range(6)] == [drawn[i].reward_text for i in range(6)]


def test_the_data_itself_is_no_folder_to_write(command, environment, triplets_of):
    """Its RewardEdit.json would be replaced."""
    data = triplets_of(2, "folders")
    before = {path: path.read_bytes() for path in Path(data).rglob("*") if path.is_file()}
    whole = [*command, "build", "--data", "miniature:2", "--out", data, "--judge", "oracle"]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "other things than a build" in done.stderr
    assert {path: path.read_bytes() for path in Path(data).rglob("*") if path.is_file()} == before


def test_errors_of_the_command_line(command, environment, tmp_path):
    for arguments, message in (
        (["--data", tmp_path / "none", "--model", "m", "--base-url", "http://localhost:1/v1"], "does not exist"),
        (["--data", "miniature:2", "--model", "m"], "OPENAI_API_KEY"),
        (["--data", "miniature:2"], "--model"),
    ):
        whole = [*command, "build", "--out", tmp_path / "o", *arguments]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("model", "status"), [("talk+good", 0), ("echo", 2)])
def test_the_key_stays_in_the_environment(model, status, command, environment, triplets_of, judge_server, config):
    key = "sk-test-0123456789abcdef"
    settings = config(triplets_of(2, "folders"), model)
    whole = [*command, "build", "--data", settings.data, "--out", settings.out, "--model", model]
    debug = environment | {"OPENAI_API_KEY": key, "OPENAI_LOG": "debug"}
    done = subprocess.run(
        [*whole, "--base-url", judge_server.url], env=debug, capture_output=True, text=True, check=False
    )
    assert done.returncode == status and {entry["authorization"] for entry in judge_server.log} == {f"Bearer {key}"}
    files = {path.name: path.read_bytes() for path in Path(settings.out).rglob("*") if path.is_file()}
    assert files.keys() >= {"build.json", "report.json", "rewards.jsonl"}
    assert not any(key.encode() in data for data in files.values())
    assert "openai._base_client" in done.stderr and key not in done.stderr + done.stdout


class Killed:
    """`mrc-rewards build`, killed again and again."""

    def __init__(self, command, environment, server, settings):
        arguments = ["--data", settings.data, "--out", settings.out, "--model", settings.options.judge_model]
        more = ["--base-url", server.url, "--concurrency", "4"]
        self.whole = [*command, "build", *arguments, *more]
        self.environment, self.server = environment, server

    def start(self):
        return subprocess.Popen(self.whole, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, process, delay, worker):
        """SIGKILL to the command after `delay` seconds of requests, to its worker process too if `worker`; whether
        it was still at work, and which requests it had under way."""
        asked = len(self.server.log)
        while process.poll() is None and len(self.server.log) == asked:
            time.sleep(0.005)
        time.sleep(delay)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        victims = [process.pid] + [int(pid) for pid in children.read_text().split() if worker]
        at_work = process.poll() is None
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        return at_work


@pytest.mark.parametrize("worker", [False, True])
def test_killed_and_gone_on_with(worker, triplets_of, judge_server, config, command, environment):
    """The command alone is killed: the replies under way are kept, nothing is asked twice. Its worker is killed too:
    what was under way may be asked again, at most one request a thread."""
    data = triplets_of(12 + 6 * KILLS, "folders")
    build(config(data, "mixed", out="undisturbed"), Spending())
    undisturbed, asked = contents(config(data, out="undisturbed").out), len(judge_server.log)
    judge_server.log.clear()
    judge_server.service = 0.05
    settings = config(data, "mixed")
    runs = Killed(command, environment, judge_server, settings)
    dice = random.Random(KILLS)
    at_work = sum(runs.kill(runs.start(), dice.uniform(0, 0.4), worker) for _ in range(KILLS))
    assert at_work == KILLS
    assert runs.start().wait() == 0
    assert contents(settings.out) == undisturbed
    twice = sum(count - 1 for count in Counter(entry["digest"] for entry in judge_server.log).values())
    print(f"{at_work} kills, {len(judge_server.log)} requests, {twice} asked again")
    assert len(judge_server.log) == asked + twice
    assert twice == 0 if not worker else twice <= 4 * KILLS


@pytest.mark.parametrize("package", ["datasets", "pyarrow"])
def test_what_the_end_needs_is_there_before_the_judge_is_paid(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mrc_edit.train.rewards.build.find_spec", lambda name: None if name == package else name)
    with pytest.raises(SystemExit) as stop:
        main(["build", "--data", "miniature:2", "--judge", "oracle", "--out", str(tmp_path / "o")])
    assert stop.value.code == 2 and f"needs {package}; pip install" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stats", "sheet"])
def test_a_missing_package_is_one_line(name, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, f"mrc_edit.train.rewards.{name}", None)  # as an import that fails
    with pytest.raises(SystemExit) as stop:
        main([name])
    assert stop.value.code == 2 and "pip install 'mrc-edit[train,judge]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "word"), [({"seed": -1}, "--seed is -1"), ({"data": "x", "photographs": "y"}, "--photographs is y")]
)
def test_settings_that_cannot_be(wrong, word):
    given = {"data": "miniature:2", "out": "o", "options": JudgeOptions("good"), **wrong}
    with pytest.raises(MRCError, match=word):
        BuildConfig(**given)


def test_workers_elsewhere_open_the_same_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    places = {}
    for data in ("here", "someone/pairs@main", "miniature:2"):
        given = with_absolute_paths(BuildConfig(data, "o", JudgeOptions("good")))
        places[data] = given.data
        assert given.out == str(tmp_path / "o")
    assert places == {"here": str(tmp_path / "here")} | {n: n for n in ("someone/pairs@main", "miniature:2")}
