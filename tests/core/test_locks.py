import os
import signal
import subprocess
import sys
import threading

import pytest

from mrc_edit.core import locks
from mrc_edit.core.errors import MRCError
from mrc_edit.core.locks import locked

# Locks, forks as data loaders do, and waits to be killed; the child lives on
LOCK_AND_FORK = """
import os, sys, time
from pathlib import Path
from mrc_edit.core.locks import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if not child:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("inside", [False, True])
def test_two_runs_follow_each_other(inside, tmp_path, capsys):
    order = []

    def second():
        with locked(tmp_path, inside=inside):
            order.append("second")

    with locked(tmp_path, inside=inside):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and "waiting for the run" in capsys.readouterr().err
    assert not (tmp_path / ".lock").exists() and not tmp_path.with_name(f".{tmp_path.name}.lock").exists()


def test_a_run_that_does_not_wait_is_refused(tmp_path):
    with locked(tmp_path / "out"):
        refused = pytest.raises(MRCError, match=r"another run is writing .*out; wait until it has ended")
        with refused, locked(tmp_path / "out", wait=False):
            pass
        with locked(tmp_path / "other", wait=False):
            pass
    with locked(tmp_path / "out", wait=False):
        pass


def test_many_writers_are_one_at_a_time(tmp_path):
    """Whoever waits for a lock file that was removed meanwhile takes a new one."""
    inside, most = [], []

    def work():
        for _ in range(40):
            with locked(tmp_path / "out"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 160


def test_a_killed_run_holds_nothing_though_its_child_lives(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_FORK, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with locked(tmp_path / "out", wait=False):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_file_that_was_replaced_meanwhile_is_taken_again(tmp_path, monkeypatch):
    """The writer before removes its lock file while this one waits for it; a third one may have made another."""
    take, taken = locks.take, []

    def slow_take(descriptor, target, wait):
        if not taken:
            (tmp_path / ".out.lock").unlink()
            (tmp_path / ".out.lock").touch()
        taken.append(descriptor)
        take(descriptor, target, wait)

    monkeypatch.setattr(locks, "take", slow_take)
    with locked(tmp_path / "out"):
        assert len(taken) == 2
    assert not list(tmp_path.iterdir())
