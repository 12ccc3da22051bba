import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrc_edit.bench import quality
from mrc_edit.bench.real_edit import run
from mrc_edit.bench.real_edit.run import edit_items, judge_items, write_results
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.judge.spending import Spending


def content(out: Path) -> dict[str, bytes]:
    """What a run has made, but for the stored replies."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and "replies" not in path.parts)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def out(edited, tmp_path):
    shutil.copytree(edited[0], tmp_path / "run")
    return tmp_path / "run"


def test_an_edit_is_what_the_engine_gives_with_the_items_seed(edited, engine, settings):
    out, items = edited
    item = items[9]
    direct = engine.edit(item.image, item.instruction, seed=item.seed, **settings).images[0]
    assert np.array_equal(np.asarray(direct), np.asarray(Image.open(out / "edits" / f"{item.name}.png")))
    assert Image.open(out / "sources" / "10.png").size == direct.size
    assert len(list((out / "edits").iterdir())) == 14


def test_the_order_of_items_does_not_matter(data, tiny_export, out, settings, tmp_path):
    turned, before = tmp_path / "data", content(out)
    shutil.copytree(data, turned)
    entries = json.loads((turned / "instructions.json").read_text())
    (turned / "instructions.json").write_text(json.dumps(dict(reversed(entries.items()))))
    for name in ("2-1-local", "2-7-style", "10-4-texture"):
        (out / "edits" / f"{name}.png").unlink()
    edit_items(turned, str(tiny_export), out, settings)
    assert content(out) == before


def test_only_what_is_missing_is_edited(data, tiny_export, edited, out, settings, monkeypatch):
    before = content(out)
    (out / "edits" / "2-3-add.png").unlink()
    (out / "edits" / "10-7-style.png").unlink()
    (out / "edits" / ".2-3-add.png.partial-1").write_bytes(b"half")
    saved = []
    monkeypatch.setattr(run, "save", lambda image, path, save=run.save: (saved.append(path.name), save(image, path)))
    edit_items(data, str(tiny_export), out, settings)
    assert saved == ["2-3-add.png", "10-7-style.png"]
    assert content(out) == before


def test_another_run_is_not_mixed_in(data, tiny_export, plain, out, settings, tmp_path):
    for model, asked, message in (
        (tiny_export, settings | {"guidance_scale": 2.0}, "settings"),
        (plain, settings, "digest"),
    ):
        with pytest.raises(MRCError, match=message):
            edit_items(data, str(model), out, asked)
    shutil.copytree(data, tmp_path / "data")
    entries = (tmp_path / "data" / "instructions.json").read_text()
    (tmp_path / "data" / "instructions.json").write_text(entries.replace("add <3>", "add <4>"))
    with pytest.raises(MRCError, match="data"):
        edit_items(tmp_path / "data", str(tiny_export), out, settings)
    with pytest.raises(MRCError, match="other things"):
        edit_items(data, str(tiny_export), tmp_path, settings)


def test_an_unusable_reply_is_counted_and_no_zero(edited, out, fake_judge):
    items = edited[1]
    judge = fake_judge(unusable={items[2].instruction, items[13].instruction})
    rewards = judge_items(judge, items, out, 4, Spending())
    results = write_results(items, out, rewards, {"model": "fake", "prompts": 1})
    assert sorted(judge.asked) == sorted(item.instruction for item in items)
    quality = results["tables"]["judged"]["overall"]["quality"]
    scores = [one["reward"]["scores"][2] for one in results["items"] if one["reward"]["scores"][2] is not None]
    assert (quality["judged"], quality["failures"], len(scores)) == (12, 2, 12)
    assert quality["mean"] == round(sum(scores) / 12, 2)
    assert quality["accuracy"] == round(100 * sum(score >= 4 for score in scores) / 12, 1)
    assert results["tables"]["judged"]["overall"]["following"]["failures"] == 0
    assert results["tables"]["judged"]["add"]["quality"]["failures"] == 1
    assert results["items"][2]["reward"]["failures"][2] == "unusable: <prose>"
    assert results["tokens"] == 140
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))


def test_rewards_belong_to_their_items(edited, out, fake_judge):
    items = edited[1]
    rewards = judge_items(fake_judge(), items, out, 8, Spending())
    assert rewards == [fake_judge().score(None, None, item.instruction) for item in items]


def test_without_a_judge_the_proxies_stand_alone(edited, out):
    results = write_results(edited[1], out)
    assert results["judge"] is None and results["tables"]["judged"] is None
    assert results["tables"]["proxies"]["overall"]["noise"]["n"] == 14
    assert results["tables"]["proxies"]["overall"]["psnr"]["n"] <= 10
    assert "hidden" in (out / "index.html").read_text()


def test_a_killed_run_ends_the_same(data, tiny_export, out, judge_server, settings, tmp_path, monkeypatch):
    def arguments(out: Path) -> list[str]:
        options = {
            "real-edit": data, "model": tiny_export, "out": out, "steps": settings["num_inference_steps"],
            "guidance": settings["guidance_scale"], "image-guidance": settings["image_guidance_scale"],
            "judge": "openai", "base-url": judge_server.url, "judge-model": "good", "concurrency": 2,
        }  # fmt: skip
        return [text for name, value in options.items() for text in (f"--{name}", str(value))]

    def kill_when(out: Path, there: str, count: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "mrc_edit.bench.quality", *arguments(out)], stdout=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(out.glob(there))) < count:
            time.sleep(0.01)
        process.kill()
        process.wait()

    judge_server.service = 0.05
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-written")
    killed = tmp_path / "killed"
    shutil.copytree(out, killed)
    for path in sorted((killed / "edits").iterdir())[:5]:
        path.unlink()
    kill_when(killed, "edits/*.png", 11)
    kill_when(killed, "replies/*/*", 12)
    for folder in (killed, out):  # `out` has all its edits
        quality.run(quality.arguments().parse_args(arguments(folder)))
    assert content(killed) == content(out)
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(everything) > 100 and not any(b"sk-never-written" in path.read_bytes() for path in everything)


def test_a_bad_item_ends_no_run(data, tmp_path, capsys):
    """It is named, counted in the report, and the exit status tells."""
    bad, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, bad)
    (bad / "images" / "10.png").write_bytes(b"no image")
    entries = {"10.png": ["1. Local: red"], "2.jpeg": ["1. Local: red", "2. Add: " + "a" * 10_001, "3. Nothing: x"]}
    (bad / "instructions.json").write_text(json.dumps(entries))
    options = quality.arguments().parse_args(["--real-edit", str(bad), "--out", str(out), "--steps", "1"])
    for _ in range(2):  # the second time nothing but these is tried again
        assert run_command(lambda: quality.run(options)) == 2
        named, errors = capsys.readouterr()
        assert "**Left out: 3**" in named and errors.endswith(
            "error: 3 items were left out, 1 are in the report; mend those named above\n"
        )
        for word in ("left out: 10-1-local: ", "left out: 2-2-add: ", "left out: 2.jpeg: '3. Nothing: x' is no"):
            assert errors.count(word) == 1
        results = json.loads((out / "results.json").read_text())
        assert (len(results["left_out"]), [one["name"] for one in results["items"]]) == (3, ["2-1-local"])
    with pytest.raises(MRCError, match="guidance_scale"):  # of all items
        edit_items(bad, "mini", tmp_path / "other", {"guidance_scale": 0.5})


def test_what_the_command_refuses(data, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    out = ("--out", tmp_path / "out")
    for arguments, message in (
        (("--real-edit", data), "--out"),
        (("--real-edit", tmp_path, *out), "holds none"),
        (("--real-edit", data, *out, "--judge", "openai"), "vision-language model"),
        (("--real-edit", data, *out, "--judge", "openai", "--judge-model", "m"), "OPENAI_API_KEY"),
        (("--compare", tmp_path, tmp_path, *out), "results.json"),
        (("--compare", tmp_path, tmp_path, *out, "--csv", tmp_path / "c.csv"), "--csv"),
    ):
        with pytest.raises(MRCError, match=re.escape(message)):
            quality.run(quality.arguments().parse_args([*map(str, arguments)]))
    assert not (tmp_path / "out").exists()
