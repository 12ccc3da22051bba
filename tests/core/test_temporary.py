import fcntl
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from mrc_edit.core import temporary
from mrc_edit.core.temporary import PREFIX, private_folder

HOLDS = """
import sys, time
from mrc_edit.core.temporary import private_folder
with private_folder() as folder:
    (folder / "weights").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_of_its_own_that_goes(root):
    with private_folder() as folder, private_folder() as other:
        assert folder != other and folder.parent == root and folder.stat().st_mode & 0o777 == 0o700
        (folder / "x").write_bytes(b"x")
    assert not any(root.iterdir())


def test_what_a_killed_process_left_goes_and_nothing_else(root):
    (root / "mrc-other").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(root)}
    )
    held = root / child.stdout.readline().strip()
    (root / f"{PREFIX}link").symlink_to(held)
    with private_folder():
        assert (held / "weights").exists()  # it lives
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert (held / "weights").exists()
    with private_folder():
        assert not held.exists()
    assert sorted(path.name for path in root.iterdir()) == ["mrc-other", f"{PREFIX}link"]


def test_those_of_another_user_stay(root, monkeypatch):
    leftover = root / f"{PREFIX}1"
    leftover.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(temporary.os, "getuid", lambda: 12345)
        with private_folder():
            assert leftover.exists()
    with private_folder():
        assert not leftover.exists()


def test_a_new_folder_that_another_takes_for_a_leftover_is_made_again(root, monkeypatch):
    """Between its making and its lock."""
    make, made = tempfile.mkdtemp, []

    def taken_once(**options):
        made.append(make(**options))
        if len(made) == 1:
            locked = os.open(made[0], os.O_RDONLY)  # open until the test ends
            fcntl.flock(locked, fcntl.LOCK_EX)
        return made[-1]

    monkeypatch.setattr(temporary.tempfile, "mkdtemp", taken_once)
    with private_folder() as folder:
        assert [str(folder)] == made[1:]
