"""A process that outlives the command that started it, long enough to finish what it has begun."""

import signal
import subprocess
import sys
import time

import pytest

from mrc_edit.core.locks import locked
from mrc_edit.judge.spending import Spending

# Starts the child below by `run_detached`; the child counts until it is told to stop, then takes half a second to end.
# A shell's background jobs ignore interrupts and so would this, if tests run in one
PARENT = """
import signal, sys
from mrc_edit.core.errors import run_command
from mrc_edit.judge.detached import run_detached
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(run_command(lambda: sys.exit(run_detached('counting', sys.argv[1]))))
"""
CHILD = """
import sys, time
from pathlib import Path
from mrc_edit.core.locks import locked
from mrc_edit.judge.detached import stop_with_parent
from mrc_edit.judge.spending import Spending
folder, spending = Path(sys.argv[1]), Spending()
stop_with_parent(spending)
with locked(folder, inside=True):
    (folder / "begun").touch()
    spending.stopped.wait(30)
    time.sleep(0.5)
    (folder / "ended").touch()
sys.exit(3)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def begin():
        process = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        return process

    return begin


def test_what_is_under_way_ends_after_the_command_is_killed(start, tmp_path):
    process = start()
    process.kill()
    process.wait()
    assert not (tmp_path / "ended").exists()
    with locked(tmp_path, inside=True):  # waits for it
        assert (tmp_path / "ended").exists()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_what_is_under_way(start, tmp_path, sent, status):
    process = start()
    process.send_signal(sent)
    assert process.wait() == status and (tmp_path / "ended").exists()


def test_the_first_reason_is_told():
    spending = Spending()
    spending.stop("one")
    spending.stop("two")
    assert spending.reason == "one"
