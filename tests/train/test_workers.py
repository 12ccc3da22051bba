import os
import signal
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader, Dataset

from mrc_edit.core.errors import MRCError
from mrc_edit.train.workers import load


class Numbers(Dataset):
    def __getitem__(self, index):
        if index == 3:
            raise MRCError("sample 3 is broken; mend it")
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index * 10


@pytest.mark.parametrize("workers", [0, 1])
def test_items_come_in_order_and_an_error_as_it_was_raised(workers):
    items = load(Numbers(), range(1, 9), workers)
    assert [next(items), next(items)] == [10, 20]
    with pytest.raises(MRCError) as error:
        next(items)
    assert str(error.value) == "sample 3 is broken; mend it"


def test_a_killed_worker_is_said():
    with pytest.raises(MRCError, match="process that loads data was killed"):
        list(load(Numbers(), range(4, 9), 1))


def test_a_worker_that_is_killed_at_once_is_said(monkeypatch):
    def killed(loader):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(DataLoader, "__iter__", killed)
    with pytest.raises(MRCError, match="process that loads data was killed"):
        load(Numbers(), range(4, 9), 1)


STREAM = """
import sys, time
from torch.utils.data import Dataset
from mrc_edit.core.errors import run_command
from mrc_edit.train.workers import load

class Slow(Dataset):
    def __getitem__(self, index):
        time.sleep(index)
        return index

def command():
    for item in load(Slow(), [0, 600], 1):
        print(item, flush=True)

sys.exit(run_command(command))
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_ends_in_one_line(sent, status):
    """As a terminal's Ctrl-C and a scheduler's end of a job are sent."""
    with subprocess.Popen(
        [sys.executable, "-c", STREAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "0\n"
        os.killpg(process.pid, sent)
        assert process.wait(60) == status
        assert process.stderr.read() == f"stopped by {sent.name}\n"
