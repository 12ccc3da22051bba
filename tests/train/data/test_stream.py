"""Shards behind URLs: the same samples as on disk, in an order that any step can begin with."""

import functools
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.train.data import open_data, open_triplets, stream
from mrc_edit.train.data.stream import StreamBatches, open_stream
from mrc_edit.train.loop import train
from mrc_edit.train.state import list_states

datasets = pytest.importorskip("datasets", reason="the train extra is not installed")
ROWS, SHARDS = 8, 3
COUNTS = (3, 3, 2)  # rows of each shard


def picture(seed, size=(64, 64)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size)


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, numbers):
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            parts = {
                "source.png": encoded(picture([0, i])),
                "edited.png": encoded(picture([1, i])),
                "json": json.dumps({"edit": f"make it {i}"}).encode(),
            }
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{i:03d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as every server of large files does."""

    def log_message(self, *_):
        pass

    def send_head(self):
        path = Path(self.translate_path(self.path.partition("?")[0]))
        if not path.is_file():
            return self.send_error(404)
        data, status = path.read_bytes(), 200
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            self.server.ranges += 1
            span, status = data[int(first) : int(last or len(data)) + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(span) - 1}/{len(data)}")
            data = span
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return io.BytesIO(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards of both kinds."""
    folder = tmp_path_factory.mktemp("shards")
    image = datasets.Image()
    features = {"source_img": image, "instruction": datasets.Value("string"), "target_img": image, "mask_img": image}
    first = 0
    for shard, count in enumerate(COUNTS):
        numbers = range(first, first + count)
        write_tar(folder / f"train-{shard:02d}.tar", numbers)
        rows = [
            {"source_img": picture([0, i]), "instruction": f"make it {i}", "target_img": picture([1, i])}
            for i in numbers
        ]
        rows = [row | {"mask_img": None} for row in rows]
        table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        table.to_parquet(str(folder / f"train-{shard:02d}.parquet"))
        first += count
    return folder


@pytest.fixture(scope="module")
def server(folder):
    pytest.importorskip("aiohttp", reason="fsspec reads http:// by aiohttp, which the train extra brings")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=folder))
    server.ranges = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", 4)


KINDS = ["parquet", "tar"]
pytestmark = pytest.mark.filterwarnings("ignore:.*not used")


def pattern(folder, kind):
    return f"file://{folder}/train-{{00..02}}.{kind}"


def batches(data, batch_size=2, **kwargs):
    return StreamBatches(open_stream(data, None), batch_size, 16, 5, augment=False, **kwargs)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_has_the_samples_of_the_disk(kind, folder):
    on_disk = open_triplets(f"{folder}/train-{{00..02}}.{kind}")
    assert len(on_disk) == ROWS
    streamed = batches(pattern(folder, kind))
    samples = [streamed.readable(position, []) for position in range(2 * ROWS)]
    for epoch in (samples[:ROWS], samples[ROWS:]):
        found = {sample.instruction: sample for sample in epoch}
        assert len(found) == ROWS
        for expected in (on_disk[i] for i in range(ROWS)):
            sample = found[expected.instruction]
            assert np.array_equal(sample.source, expected.source) and np.array_equal(sample.edited, expected.edited)
    orders = [[sample.instruction for sample in samples[i : i + ROWS]] for i in (0, ROWS)]
    assert orders[0] != orders[1] != sorted(orders[1])


@pytest.mark.parametrize("kind", KINDS)
def test_any_step_can_be_the_first(kind, folder):
    """Within a window, at its end, and epochs away; steps that are left out change nothing."""
    undisturbed = batches(pattern(folder, kind))
    expected = [undisturbed[step] for step in range(20)]
    for first in (0, 1, 2, 3, 7, 11, 19):
        assert same(batches(pattern(folder, kind))[first], expected[first])
    every_third = batches(pattern(folder, kind))
    assert all(same(every_third[step], expected[step]) for step in range(0, 20, 3))
    assert same(every_third[1], expected[1])


def test_two_processes_read_together_what_one_reads(folder):
    for step in range(4):
        whole = batches(pattern(folder, "tar"), 4)[step]
        halves = [batches(pattern(folder, "tar"), 4, rank=rank, world_size=2)[step] for rank in (0, 1)]
        assert whole["ids"] == halves[0]["ids"] + halves[1]["ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_urls_give_what_files_give(kind, folder, server):
    url = f"http://127.0.0.1:{server.server_port}/train-{{00..02}}.{kind}"
    remote, local = batches(url), batches(pattern(folder, kind))
    assert all(same(remote[step], local[step]) for step in (0, 5, 6))
    assert server.ranges


def test_parquet_shards_are_passed_over_without_reading_them(folder, monkeypatch):
    read = []
    real = stream.parquet_rows

    def rows(url, *rest):
        read.append(url)
        return real(url, *rest)

    monkeypatch.setattr(stream, "parquet_rows", rows)
    batches(pattern(folder, "parquet"))[1000]
    assert len(read) <= 5  # a window's


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_undisturbed_one(base, folder, server, tmp_path, same_state, brief_grids):
    """Over HTTP, with a process that loads; the continuation with another number of those."""
    url = f"http://127.0.0.1:{server.server_port}/train-{{00..02}}.parquet"
    config = replace(
        base, stage=1, data=url, cache=None, steps=2, checkpoint_every=1, workers=1, validate_every=2, batch_size=2,
        out=str(tmp_path / "whole"),
    )  # fmt: skip
    train(config)
    parts = replace(config, steps=1, workers=0, validate_every=0, out=str(tmp_path / "parts"))
    train(parts)
    train(replace(parts, steps=2), resume="latest")
    whole, resumed = (list_states(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert whole.name == resumed.name == "00000002" and same_state(whole, resumed)
    assert (tmp_path / "whole" / "validation" / "00000002.png").is_file()


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_tar_file_says_so_and_the_others_are_read(cut, folder, tmp_path):
    for shard in range(SHARDS):
        data = (folder / f"train-{shard:02d}.tar").read_bytes()
        if shard == 1:
            with tarfile.open(folder / "train-01.tar") as tar:
                at = [member.offset for member in tar][4]
            data = data[: at + 100] if cut else data[:at] + b"\xff" * 512 + data[at + 512 :]
        (tmp_path / f"train-{shard:02d}.tar").write_bytes(data)
    streamed = batches(pattern(tmp_path, "tar"))
    seen = [streamed[step] for step in range(12)]
    broken = {message for batch in seen for message in batch["broken"]}
    assert any("train-01.tar is damaged" in message and "fetch it again" in message for message in broken)
    assert {text for batch in seen for text in batch["instructions"]} >= {f"make it {i}" for i in (0, 1, 2, 3, 6, 7)}
    assert same(batches(pattern(tmp_path, "tar"))[9], seen[9])


def test_a_damaged_parquet_file_says_so(folder, tmp_path):
    for shard in range(SHARDS):
        data = bytearray((folder / f"train-{shard:02d}.parquet").read_bytes())
        if shard == 1:
            data[-8:-4] = b"\xff" * 4  # length of the footer
        (tmp_path / f"train-{shard:02d}.parquet").write_bytes(data)
    streamed = batches(pattern(tmp_path, "parquet"))
    seen = [streamed[step] for step in range(12)]
    broken = {message for batch in seen for message in batch["broken"]}
    assert broken and all("train-01.parquet is damaged" in message for message in broken)
    assert {text for batch in seen for text in batch["instructions"]} == {f"make it {i}" for i in (0, 1, 2, 6, 7)}


def test_a_shard_that_cannot_be_fetched_stops(folder, server):
    """It may come back: leaving it out would change the order of a resumed run."""
    url = f"http://127.0.0.1:{server.server_port}/train-{{00..03}}.tar?key=secret"
    streamed = batches(url)
    with pytest.raises(MRCError, match=r"train-03\.tar cannot be read .*--resume latest") as error:
        for step in range(6):
            streamed[step]
    assert "secret" not in str(error.value).partition("(")[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [("pipe://cat a.tar", "begins with pipe://"), ("file:///none.tar.gz", "only .parquet and .tar stream"),
     ("file:///{a,b}.tar", "braces that are no range"), ("file:///none.parquet", "cannot be read")],
)  # fmt: skip
def test_what_is_no_stream(data, message):
    with pytest.raises(MRCError, match=message):
        open_stream(data, None)


def test_data_on_disk_are_no_stream(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert open_stream(str(folder), None) is None
    assert open_stream("miniature:4", None) is None
    (folder.parent / "a").mkdir()
    (folder.parent / "a" / "b").mkdir()
    assert open_stream("a/b", None) is None
    with pytest.raises(MRCError, match="read as a stream"):
        open_data("https://localhost/a.tar")


@pytest.mark.parametrize("setting", ["cache", "rewards"])
def test_settings_that_streams_do_not_have(setting, base, folder, tmp_path):
    config = replace(base, data=pattern(folder, "tar"), cache=None, out=str(tmp_path / "o"))
    with pytest.raises(MRCError, match=f"--{setting} is"):
        train(replace(config, **{setting: str(tmp_path / "x")}))


def test_empty_shards(tmp_path):
    tarfile.open(tmp_path / "a.tar", "w").close()
    with pytest.raises(MRCError, match="have no rows"):
        batches(f"file://{tmp_path}/a.tar")[0]


def test_files_of_a_local_pattern_that_are_missing(folder):
    with pytest.raises(MRCError, match=r"1 files do not exist, such as .*train-03\.tar"):
        open_triplets(f"{folder}/train-{{00..03}}.tar")


READ_BY_NAME = """
import hashlib, itertools, json, sys
from mrc_edit.train.data.stream import open_stream

stream = open_stream(sys.argv[1], None)
for name, read in itertools.islice(stream.rows(0, 0), int(sys.argv[2])):
    triplet = read()
    pixels = [hashlib.sha256(image.tobytes()).hexdigest() for image in (triplet.source, triplet.edited)]
    print(json.dumps([name, triplet.instruction, pixels]))
"""


def test_a_name_streams_from_the_hub_what_its_folder_holds(hub, tmp_path):
    """A process of its own, as `datasets` reads HF_ENDPOINT and HF_HOME when it is imported."""
    (tmp_path / "pushed" / "data").mkdir(parents=True)
    tables = {f"train-{shard:05d}-of-00002.parquet": range(3 * shard, 3 * shard + 3) for shard in range(2)}
    for name, numbers in (tables | {"dev-00000-of-00001.parquet": [9]}).items():
        columns = {
            "source_img": [noise(i) for i in numbers],
            "target_img": [noise(i + 100) for i in numbers],
            "instruction": [f"make it {i}" for i in numbers],
        }
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "pushed" / "data" / name)
    hub.push("osunlp/MagicBrush", tmp_path / "pushed", kind="datasets")
    command = [sys.executable, "-c", READ_BY_NAME, "osunlp/MagicBrush", "6"]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [
        [f"{name} row {row}", f"make it {i}", [pixels(noise(i)), pixels(noise(i + 100))]]
        for name, numbers in tables.items()
        for row, i in enumerate(numbers)
    ]
    assert sorted(json.loads(line) for line in done.stdout.splitlines()) == sorted(expected)  # shards are shuffled
    assert not list((tmp_path / "home").rglob("*.parquet"))  # nothing was stored
    assert any(path.startswith("/blobs/") for path in hub.fetched())  # the redirect of large files
    assert not any("dev-" in path for path in hub.fetched())


def noise(seed):
    """A picture that is large enough for the hub's large file storage."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def pixels(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def test_names_on_the_hub_are_the_files_of_their_training_split(folder, monkeypatch):
    real = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: real("parquet", data_files=files))
    files = {split: f"{folder}/train-{i:02d}.parquet" for i, split in enumerate(("train", "test"))}
    opened = open_stream("owner/name", None)
    assert opened is not None and [Path(shard).name for shard in opened.shards] == ["train-00.parquet"]
    files = {"test": files["test"]}
    with pytest.raises(MRCError, match="has only test"):
        open_stream("owner/name", None)
    files = {"train": f"{folder}/none.parquet"}
    with pytest.raises(MRCError, match="no data set that the hub gives"):
        open_stream("owner/name", None)
