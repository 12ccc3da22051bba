"""A batch is edited once, whatever happens on the way, and comes out the same."""

import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrc_edit.engine.batch import editing
from mrc_edit.engine.batch.item import seed_of
from mrc_edit.engine.batch.place import read_ledgers

HERE = Path(__file__).parent
KILLS = 20


def test_every_item_is_edited_once(batch, folder, calls, edits_of, tmp_path):
    status, stdout, _ = batch(folder(), tmp_path / "out", "--seed", 3, "--json")
    *lines, last = map(json.loads, stdout.splitlines())
    assert status == 0 and last == {"items": 6, "edited": 6, "edited before": 0, "failed": 0, "errors": None}
    assert [line["output"] for line in lines] == sorted(edits_of(tmp_path / "out")) == [f"{i}.png" for i in range(6)]
    assert calls() == [[seed_of(3, str(i))] for i in range(6)]
    first = Image.open(tmp_path / "out" / "0.png")
    source = Image.open(tmp_path / "in" / "0.png")
    np.testing.assert_array_equal(
        np.asarray(first), np.asarray(sys.modules["painter"].paint(source, "thing 0", seed_of(3, "0")))
    )
    written = json.loads(first.info["mrc-edit"])
    assert (written["instruction"], written["image"], written["settings"]["seed"]) == (
        "thing 0",
        "0.png",
        seed_of(3, "0"),
    )
    assert batch(tmp_path / "in", tmp_path / "out", "--seed", 3)[0] == 0
    assert len(calls()) == 6


def test_an_edit_depends_on_no_other_item_nor_on_the_order(batch, folder, edits_of, tmp_path):
    made = folder()
    assert batch(made, tmp_path / "whole", "--seed", 3)[0] == 0
    rows = [{"image": f"{i}.png", "instruction": f"thing {i}"} for i in (4, 1)]
    (made / "instructions.json").write_text(json.dumps(rows))
    assert batch(made, tmp_path / "two", "--seed", 3)[0] == 0
    whole, two = edits_of(tmp_path / "whole"), edits_of(tmp_path / "two")
    assert two == {name: whole[name] for name in ("1.png", "4.png")}


def test_a_seed_that_was_drawn_is_kept(batch, folder, calls, tmp_path):
    made = folder(2)
    (made / "1.png").rename(made / "away.png")
    assert batch(made, tmp_path / "out")[0] == 1
    (made / "away.png").rename(made / "1.png")
    assert batch(made, tmp_path / "out")[0] == 0
    seed = json.loads((tmp_path / "out" / ".mrc-batch" / "batch.json").read_text())["seed"]
    assert calls() == [[seed_of(seed, "0")], [seed_of(seed, "1")]]


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_killed_at_random_and_resumed(folder, shards, batch, calls, edits_of, tmp_path, form):
    """The stand-in notes each call before it paints; the ledger has each edit once."""
    words = (folder(100), "out") if form == "folder" else (shards(10, 10), "out/e-{0..9}.tar")
    size = 1 if form == "folder" else 4
    flags = ("--seed", 1, "--batch-size", size)
    done = subprocess.run(
        [sys.executable, HERE / "killed.py", calls.path, str(KILLS), "m", "--batch", *map(str, (*words, *flags))],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    killed, status = map(int, done.stdout.split())
    assert status == 0 and killed > KILLS / 2, done.stderr
    keys = [entry["key"] for entry in read_ledgers(tmp_path / "out" / ".mrc-batch") if "key" in entry]
    assert len(keys) == len(set(keys)) == 100
    times = Counter(seed for seeds in calls() for seed in seeds)
    assert len(times) == 100 and times.total() - 100 <= killed * size
    whole = str(tmp_path / words[1]).replace("/out", "/whole")
    assert batch(words[0], whole, *flags)[0] == 0
    assert edits_of(tmp_path / "out") == edits_of(tmp_path / "whole")
    assert not list((tmp_path / "out" / ".mrc-batch").glob("shards/*"))


def test_a_pass_that_was_cut_off_is_edited_whole_again(batch, folder, calls, edits_of, monkeypatch, tmp_path):
    """Another batch shape would round otherwise."""
    put, made = editing.put, folder(4)

    def stop_at_third(partial, target, content):
        if target.name == "3.png":
            raise OSError(28, "No space left on device")
        put(partial, target, content)

    with monkeypatch.context() as patched:
        patched.setattr(editing, "put", stop_at_third)
        status, _, stderr = batch(made, tmp_path / "out", "--seed", 1, "--batch-size", 2)
    assert status == 2 and "No space left" in stderr
    assert batch(made, tmp_path / "out", "--seed", 1, "--batch-size", 2)[0] == 0
    assert [len(call) for call in calls()] == [2, 2, 2]
    assert len(edits_of(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("--seed", 4), "seed"), (("--steps", 2), "steps"), (("--reward", "5,5,4"), "reward"),
        (("--format", "webp"), "format"), (("--batch-size", 2), "batch_size"), (("--tier", "fast"), "tier"),
        (("--num-images", 2), "num_images"), ("instruction", "digest of the items"), ("item", "items"),
        ("image", "0.png is not the image"), ("gone", "0.png is not the image"), ("edit", "0.png is not as this batch"),
        ("model", "model_digest"),
    ],
)  # fmt: skip
def test_what_has_changed_is_refused(batch, folder, calls, edits_of, monkeypatch, tmp_path, change, word):
    made, flags = folder(3), ("--seed", 3)
    if change == "model":
        (made / "2.png").rename(made / "away.png")  # so that a model is opened again
    batch(made, tmp_path / "out", *flags)
    before, number = edits_of(tmp_path / "out"), len(calls())
    if change == "instruction":
        (made / "instructions.json").write_text(json.dumps({f"{i}.png": [f"thing {max(i, 1)}"] for i in range(3)}))
    elif change == "item":
        (made / "instructions.json").write_text(json.dumps({f"{i}.png": [f"thing {i}"] for i in range(2)}))
    elif change == "image":
        (made / "0.png").write_bytes((made / "1.png").read_bytes())
    elif change == "gone":
        (made / "0.png").unlink()
    elif change == "edit":
        before["0.png"] += b"x"
        (tmp_path / "out" / "0.png").write_bytes(before["0.png"])
    elif change == "model":
        (made / "away.png").rename(made / "2.png")
        sys.modules["painter"].replace_engine(monkeypatch.setattr, calls.path, model="1")
    else:
        flags = change if change[0] == "--seed" else (*flags, *change)
    status, _, stderr = batch(made, tmp_path / "out", *flags)
    assert status == 2 and stderr.count("\n") == 1 and word in stderr
    assert edits_of(tmp_path / "out") == before and len(calls()) == number


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("batch.json", '{"version": "x"}', "begin anew"), ("batch.json", '{"seed": "x"}', "begin anew"),
        ("done-0.jsonl", "[{]\n", "made again"), ("done-0.jsonl", "{}\n", "made again"),
        ("done-0.jsonl", "[3]\n", "made again"), ("done-0.jsonl", '[{"key": "1"}]\n', "made again"),
        ("done-0.jsonl", '[{"key": [], "error": "x"}]\n', "made again"), ("done-0.jsonl", '[{"key": "1"', ""),
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_line_with_the_remedy(batch, folder, calls, edits_of, tmp_path, name, content, remedy):
    made = folder(2)
    assert batch(made, tmp_path / "out")[0] == 0
    before, record = edits_of(tmp_path / "out"), tmp_path / "out" / ".mrc-batch" / name
    record.write_text(content)
    status, _, stderr = batch(made, tmp_path / "out")
    assert edits_of(tmp_path / "out") == before and len(calls()) == 2
    if remedy:
        assert status == 2 and stderr.count("\n") == 1 and str(record) in stderr and remedy in stderr
        return
    assert status == 0  # a line that a power cut left unfinished


def test_what_cannot_be_edited_is_listed_and_the_rest_edited(batch, folder, calls, edits_of, tmp_path):
    made = folder(3)
    rows = [{"image": f"{i}.png", "instruction": f"thing {i}"} for i in range(3)]
    rows += [{"image": "broken.png", "instruction": "x"}, {"image": "../0.png", "instruction": "x", "key": "c"}]
    rows += [{"image": "2.png", "instruction": "fail"}, {"image": "1.png"}, {"image": "1.png", "key": "../a"}, 7]
    rows += [{"image": "1.png", "instruction": "x", "key": "../a"}, {"image": "é\udcff.png", "instruction": "x"}]
    (made / "instructions.json").write_text(json.dumps(rows))
    (made / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for _ in range(2):  # what failed is tried again, and fails again
        status, stdout, stderr = batch(made, tmp_path / "out", "--batch-size", 8)
        assert status == 1 and "failed: 8" in stdout and "broken: the image is a damaged PNG" in stderr
        errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
        words = ["broken: the image is a damaged PNG", "leads out", "it failed", "instruction is None"]
        told = [f"{error['key']}: {error['error']}" for error in errors]
        assert errors[-1]["image"] == "é\udcff.png"  # a name that is no UTF-8
        assert len(errors) == 8 and all(any(word in line for line in told) for word in words), told
        assert sorted(edits_of(tmp_path / "out")) == ["0.png", "1-1.png", "2-1.png", "errors.jsonl"]
    (made / "broken.png").write_bytes((made / "0.png").read_bytes())  # mended: no edit was made of it
    assert batch(made, tmp_path / "out", "--batch-size", 8)[0] == 1
    assert (tmp_path / "out" / "broken.png").exists()


def test_an_edit_that_is_withheld_is_listed_and_not_made_again(batch, folder, calls, edits_of, monkeypatch, tmp_path):
    from mrc_edit.engine.finishing import Finishing

    scores = iter([0.1, 0.9, 0.1])
    monkeypatch.setattr(editing, "open_finishing", lambda _: Finishing(score=lambda _: next(scores)))
    made = folder(3)
    for _ in range(2):
        status, stdout, _ = batch(made, tmp_path / "out", "--safety")
        assert status == 1 and "failed: 1" in stdout and len(calls()) == 3
        assert sorted(edits_of(tmp_path / "out")) == ["0.png", "2.png", "errors.jsonl"]
        (error,) = map(json.loads, (tmp_path / "out" / "errors.jsonl").read_text().splitlines())
        assert error["key"] == "1" and "withheld" in error["error"]


def test_an_image_that_cannot_be_signed_is_listed_before_its_edit(batch, folder, calls, monkeypatch, tmp_path):
    from mrc_edit.engine.finishing import Finishing

    monkeypatch.setattr(editing, "open_finishing", lambda _: Finishing(sign=lambda content, *_: content))
    made = folder(3)
    Image.open(made / "1.png").save(made / "1.png", "BMP")
    assert batch(made, tmp_path / "out", "--provenance", "cert", "key")[0] == 1
    (error,) = map(json.loads, (tmp_path / "out" / "errors.jsonl").read_text().splitlines())
    assert "1.png is BMP" in error["error"] and len(calls()) == 2


def test_tar_files_come_out_as_tar_files_or_a_folder(batch, shards, edits_of, tmp_path):
    pattern = shards()
    assert batch(pattern, tmp_path / "out", "--seed", 1)[0] == 0
    assert batch(pattern, f"{tmp_path}/tars/e-{{0..1}}.tar", "--seed", 1)[0] == 0
    edits, tars = edits_of(tmp_path / "out"), edits_of(tmp_path / "tars")
    assert sorted(tars) == ["e-0.tar", "e-1.tar"] and len(edits) == 6
    found = {}
    for content in tars.values():
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    assert {name.replace(".edited", ""): data for name, data in found.items() if "json" not in name} == edits
    assert json.loads(found["0003.json"]) == {"edit": "thing 3", "seed": seed_of(1, "0003")}


def test_a_tar_file_that_is_gone_is_made_again(batch, shards, calls, edits_of, tmp_path):
    pattern, out = shards(), f"{tmp_path}/out/e-{{0..1}}.tar"
    assert batch(pattern, out, "--seed", 1)[0] == 0
    whole = edits_of(tmp_path / "out")
    (tmp_path / "out" / "e-1.tar").unlink()
    assert batch(pattern, out, "--seed", 1)[0] == 0
    assert edits_of(tmp_path / "out") == whole and len(calls()) == 9


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("none", "out"), "does not exist"), (("in", "in"), "other things"), (("in", "in/0.png"), "is a file"),
        (("in", "out.tar"), "no tar file"), (("in/0.png", "out"), "is .png"), (("in", "out", "--workers", 2), "--ray"),
        (("in", "out", "--quality", 9), "is PNG"), (("in", "out", "--batch-size", 0), "--batch-size is 0"),
        (("in", "out", "--steps", 0), "num_inference_steps"), (("in", "out", "--seed", 2**70), "seed"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(batch, folder, monkeypatch, tmp_path, words, word):
    folder(2)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, _, stderr = batch(*words)
    assert status == 2 and word in stderr and stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_two_runs_at_once_are_refused(batch, folder, tmp_path):
    from mrc_edit.core.locks import locked

    made = folder(2)
    with locked(tmp_path / "out"):
        status, _, stderr = batch(made, tmp_path / "out")
    assert status == 2 and "another run" in stderr


def test_the_real_model(folder, tmp_path, capsys, monkeypatch):
    """What `Engine.edit` gives with the item's seed."""
    from mrc_edit.engine import Engine, command

    words = [
        "mini",
        "--batch",
        str(folder(2)),
        str(tmp_path / "out"),
        "--seed",
        "3",
        "--steps",
        "1",
        "--resolution",
        "64",
    ]
    monkeypatch.setattr(sys, "argv", ["mrc-edit", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0, capsys.readouterr().err
    engine = Engine.from_pretrained("mini")
    for i in range(2):
        options = {"seed": seed_of(3, str(i)), "num_inference_steps": 1, "resolution": 64}
        expected = engine.edit(tmp_path / "in" / f"{i}.png", f"thing {i}", **options).images[0]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / f"{i}.png")), np.asarray(expected))


@pytest.mark.slow
def test_real_runs_killed_at_random(folder, edits_of, tmp_path):
    """Processes of the command on `mini`, each killed some seconds after its start."""
    made = folder(40)
    base = [sys.executable, "-m", "mrc_edit.engine.command", "mini", "--batch", str(made)]
    flags = ["--seed", "3", "--steps", "2", "--resolution", "64", "--threads", "1"]
    chance, killed = np.random.RandomState(0), 0
    for _ in range(KILLS):
        process = subprocess.Popen([*base, str(tmp_path / "out"), *flags], stdout=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.5, 3))
        except subprocess.TimeoutExpired:
            process.kill()
        killed += process.wait() == -9
    for name in ("out", "whole"):
        subprocess.run([*base, str(tmp_path / name), *flags], check=True, stdout=subprocess.DEVNULL)
    assert killed > 0 and edits_of(tmp_path / "out") == edits_of(tmp_path / "whole")
    keys = [entry["key"] for entry in read_ledgers(tmp_path / "out" / ".mrc-batch")]
    assert len(keys) == len(set(keys)) == 40
