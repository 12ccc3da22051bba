"""Children that answer, fail, die, and never outlive the benchmark."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from mrc_edit.bench.child import child
from mrc_edit.core.errors import MRCError


def prepare_sum(start):
    if start < 0:
        raise MRCError(f"start is {start}")
    if start == 0:
        os._exit(3)

    def add(number):
        if number == 0:
            time.sleep(60)
        return start + number

    return {"pid": os.getpid()}, add


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_reports_and_answers():
    with child("sum", prepare_sum, 2) as process:
        pid = process.receive()["pid"]
        assert pid != os.getpid()
        assert [process.request(number=n) for n in (1, 2)] == [3, 4]
    assert not alive(pid)


def test_errors_of_a_child_reach_the_parent():
    with pytest.raises(MRCError, match="start is -1"), child("sum", prepare_sum, -1) as process:
        process.receive()
    with pytest.raises(MRCError, match="the process of sum died"), child("sum", prepare_sum, 0) as process:
        process.receive()
    assert not multiprocessing.active_children()


def test_an_interrupt_leaves_no_child():
    with pytest.raises(KeyboardInterrupt), child("sum", prepare_sum, 2) as process:
        pid = process.receive()["pid"]
        process.pipe.send({"number": 0})  # it sleeps
        raise KeyboardInterrupt
    assert not alive(pid)


def test_a_child_ends_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from mrc_edit.bench.child import child\n"
        "def prepare(): return os.getpid(), lambda: None\n"
        "if __name__ == '__main__':\n"
        "    with child('one', prepare) as process:\n"
        "        print(process.receive(), flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(500):
        if not alive(pid):
            break
        time.sleep(0.02)
    assert not alive(pid)
