"""Batches of small pictures, edited by a stand-in for the engine."""

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("painter", HERE / "painter.py")
painter = importlib.util.module_from_spec(spec)
sys.modules["painter"] = painter
spec.loader.exec_module(painter)


def picture(number: int) -> bytes:
    """A PNG of 24×16."""
    file = io.BytesIO()
    pixels = np.random.RandomState(number).randint(0, 256, (2, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((24, 16)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """`folder(count)`: pictures 0.png … with instructions in the form of Real-Edit."""

    def make(count=6, name="in"):
        made = tmp_path / name
        made.mkdir()
        for i in range(count):
            (made / f"{i}.png").write_bytes(picture(i))
        texts = {f"{i}.png": [f"1. Add: thing {i}"] for i in range(count)}
        (made / "instructions.json").write_text(json.dumps(texts))
        return made

    return make


@pytest.fixture
def shards(tmp_path):
    """`shards(shards, samples)`: tar files in-0.tar …, every other with a text in place of JSON, as a pattern."""

    def make(count=2, samples=3):
        for shard in range(count):
            with tarfile.open(tmp_path / f"in-{shard}.tar", "w") as tar:
                for sample in range(samples):
                    number = shard * samples + sample
                    text = f"thing {number}"
                    second = ("json", json.dumps({"edit": text}).encode()) if number % 2 else ("txt", text.encode())
                    for ending, content in (("png", picture(number)), second):
                        member = tarfile.TarInfo(f"{number:04d}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        return f"{tmp_path}/in-{{0..{count - 1}}}.tar"

    return make


@pytest.fixture
def calls(tmp_path):
    """What the stand-in was asked for: a list of seeds a call."""
    path = tmp_path / "calls.txt"

    def read():
        return [[int(seed) for seed in line.split()] for line in path.read_text().splitlines()] if path.exists() else []

    read.path = path
    return read


@pytest.fixture
def batch(monkeypatch, capsys, calls):
    """`mrc-edit MODEL --batch …` over the stand-in → exit status, stdout, stderr."""
    from mrc_edit.engine import command

    painter.replace_engine(monkeypatch.setattr, calls.path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["mrc-edit", "model", "--batch", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def edits_of():
    """The files of a batch by name, without its records."""

    def read(out):
        paths = (path for path in Path(out).rglob("*") if path.is_file())
        return {str(p.relative_to(out)): p.read_bytes() for p in paths if ".mrc-batch" not in p.parts}

    return read
