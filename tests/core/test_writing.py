"""Folders and files that appear whole or not at all: kills, two writers, links, full disks, what is not ours."""

import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mrc_edit.core import files
from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import anything, claim_folder, foreign_files, make_once, replace_folder, write_file

# Writes the same folder and file for ever; all of a folder's files hold its number
WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from mrc_edit.core.files import anything, replace_folder, write_file
target = Path(sys.argv[1])
for number in itertools.count():
    with replace_folder(target, anything) as folder:
        for name in "abcdef":
            (folder / name).write_text(str(number) * 1000)
    write_file(target.with_name("file"), str(number % 10) * 100_000)
    print(number, flush=True)
"""


def text_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(target: Path, content: str, check=anything) -> None:
    with replace_folder(target, check) as folder:
        (folder / "a").write_text(content)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole(exchanges, tmp_path, monkeypatch):
    if not exchanges:
        monkeypatch.setattr(files, "exchange", lambda first, second: False)
    for content in ("1", "2"):
        fill(tmp_path / "out", content)
        assert text_of(tmp_path / "out") == {"a": content}
        assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "run[1]*?"])
def test_kills_at_random_leave_folder_and_file_whole(name, tmp_path):
    target = tmp_path / name
    draw = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(target)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline()
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.wait()
        texts = text_of(target)
        assert set(texts) == set("abcdef") and len(set(texts.values())) == 1
        written = (tmp_path / "file").read_text()
        assert len(written) == 100_000 and len(set(written)) == 1
    fill(target, "last")
    write_file(tmp_path / "file", "last")
    assert names(tmp_path) == sorted([name, "file"])  # leftovers and locks are gone


def test_a_kill_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    """Where folders cannot be exchanged; the next writer fails too."""
    fill(tmp_path / "out", "old")
    rename = Path.rename

    def dies(path, target):
        if not Path(target).name.startswith("."):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "exchange", lambda first, second: False)
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "out", "new")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path / "out", anything):
        1 / 0  # noqa: B018
    assert text_of(tmp_path / "out") == {"a": "old"} and names(tmp_path) == ["out"]


def test_all_is_on_the_disk_before_the_folder_takes_its_place(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    order, exchange = [], files.exchange
    monkeypatch.setattr(files, "sync", lambda path: order.append(path.resolve().name))
    monkeypatch.setattr(files, "exchange", lambda first, second: order.append("exchange") or exchange(first, second))
    with replace_folder(tmp_path / "out", anything) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "deep").write_text("x")
        (folder / "top").write_text("x")
    before, after = order[: order.index("exchange")], order[order.index("exchange") + 1 :]
    assert set(before) == {folder.name, "below", "deep", "top"} and after == [tmp_path.name]


def test_two_writers_of_one_folder_do_not_mix(tmp_path):
    """Equal process numbers, as in two containers: here both are of one process."""

    def write(content):
        with replace_folder(tmp_path / "out", anything) as folder:
            (folder / "one").write_text(content)
            time.sleep(0.1)
            (folder / "two").write_text(content)

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(text_of(tmp_path / "out").values())) == 1 and names(tmp_path) == ["out"]


def test_what_is_there_already_stays(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    with pytest.raises(MRCError, match="exists already"), replace_folder(tmp_path / "thesis"):
        pass
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(MRCError, match="is a file"), replace_folder(tmp_path / "letter", anything):
        pass
    with pytest.raises(MRCError, match="exists already"), replace_folder(tmp_path / "late") as folder:
        (folder / "a").write_text("ours")
        shutil.copytree(tmp_path / "thesis", tmp_path / "late")  # while ours was being written
    assert text_of(tmp_path / "thesis") == text_of(tmp_path / "late") == {"chapter": "years of work"}
    (tmp_path / "empty").mkdir()
    with replace_folder(tmp_path / "empty") as folder:
        (folder / "a").write_text("ours")
    assert text_of(tmp_path / "empty") == {"a": "ours"}


def test_a_folder_is_claimed_by_its_record(tmp_path):
    claim_folder(tmp_path / "new", "run.json", "a run")
    (tmp_path / ".lock").write_text("")
    claim_folder(tmp_path, "run.json", "a run")
    (tmp_path / "index.html").write_text("my home page")
    with pytest.raises(MRCError, match="other things than a run"):
        claim_folder(tmp_path, "run.json", "a run")
    (tmp_path / "run.json").write_text("{}")
    claim_folder(tmp_path, "run.json", "a run")


def test_what_many_want_is_made_once(tmp_path):
    target, made = tmp_path / "cache", []

    def make():
        made.append(1)
        time.sleep(0.1)
        with files.swapped_folder(target) as folder:
            (folder / "a").write_text("x")

    threads = [threading.Thread(target=make_once, args=(target, target.is_dir, make)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and names(tmp_path) == ["cache"]


def test_foreign_files_are_found_at_any_depth(tmp_path):
    for name in ("own", "b/own", "b/other", "c/d/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "b" / "link").symlink_to("/")
    assert foreign_files(tmp_path, {"own", "b/own", "missing"}) == ["b/link", "b/other", "c/d/.hidden"]


def test_a_file_of_a_live_writer_is_no_leftover(tmp_path):
    target = tmp_path / "out.parquet"
    with files.replaced_file(target) as partial:
        partial.write_text("slow")
        write_file(target, "quick")
        assert partial.exists() and target.read_text() == "quick"
    assert target.read_text() == "slow" and names(tmp_path) == ["out.parquet"]


@pytest.mark.parametrize("state", ["left", "gone", "unreadable", "kept"])
def test_a_leftover_stops_no_writer(tmp_path, monkeypatch, state):
    """Of a killed writer; renamed by its writer meanwhile; of another user, also in a folder with the sticky bit."""
    left = tmp_path / ".file.partial-0"
    left.write_text("half")
    own, unlink = files.own, Path.unlink

    def own_later(path, flags):
        if path == left and state == "gone":
            left.rename(tmp_path / "file")
        if path == left and state == "unreadable":
            raise PermissionError(13, "Permission denied", str(path))
        return own(path, flags)

    def unlink_ours(path, **options):
        if path == left and state == "kept":
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, **options)

    monkeypatch.setattr(files, "own", own_later)
    monkeypatch.setattr(Path, "unlink", unlink_ours)
    write_file(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert left.exists() == (state in ("unreadable", "kept"))


def test_no_folder_is_made_for_a_file(tmp_path):
    with pytest.raises(MRCError, match="No such file"):
        write_file(tmp_path / "none" / "file", "x")
    assert not names(tmp_path)


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to("v1")
    fill(tmp_path / "current", "new")
    assert (tmp_path / "current").readlink() == Path("v1") and text_of(tmp_path / "v1") == {"a": "new"}
    (tmp_path / "file").write_text("old")
    (tmp_path / "latest").symlink_to("file")
    write_file(tmp_path / "latest", "new")
    assert (tmp_path / "latest").readlink() == Path("file") and (tmp_path / "file").read_text() == "new"


def test_a_pipe_is_written_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    write_file(tmp_path / "pipe", "text")
    assert reader.communicate(timeout=10)[0] == "text" and (tmp_path / "pipe").is_fifo()


@contextmanager
def no_file_over(size: int):
    """Every write beyond `size` bytes fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    write_file(tmp_path / "file", "old")
    with no_file_over(1000), pytest.raises(MRCError, match=r"file cannot be written \(.*free some space"):
        write_file(tmp_path / "file", "x" * 2000)
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]
    with pytest.raises(MRCError, match="No space left"):
        write_file(Path("/dev/full"), "x")
    says_where = pytest.raises(OSError, match=r"File too large: '.*out'")
    with no_file_over(1000), says_where, replace_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x" * 2000)
    assert names(tmp_path) == ["file"]
