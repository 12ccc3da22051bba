"""A run whose requests outlive it: they are paid for, so their replies are kept even if it is killed.

The command that the user sees starts a process of its own that does the work, and holds a pipe to it. If
the command ends, however it ends, the pipe closes; the process then sends nothing more, stores the replies
that are under way, and ends too. The next run waits for that.
"""

import fcntl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .spending import Spending


def run_detached(module: str, argument: str) -> int:
    """Run `python -m module argument` in a session of its own; returns its exit status."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, argument], stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.stdin.close()
            print("stopping: the replies under way are waited for", file=sys.stderr)
            process.wait()
            return 130


def stop_with_parent(spending: Spending) -> None:
    """In that process: stop when the pipe closes."""

    def watch() -> None:
        sys.stdin.read()
        spending.stop("the run was ended; run it again to go on")

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other run works in `folder`, and keep others waiting."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the run that is still at work in {folder}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
