"""A worker process that outlives its command: requests cost money, so their replies are stored even after a kill.

The command starts a worker process and keeps a pipe to it. When the command ends, in whatever way, the pipe
closes; the worker then sends no more requests, stores the replies in flight, and ends. The next run waits for it.
"""

import subprocess
import sys
import threading

from ..core.errors import Stopped
from .spending import Spending


def run_detached(module: str, argument: str) -> int:
    """Run `python -m module argument` in a new session; returns its exit status."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, argument], stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        try:
            return process.wait()
        except KeyboardInterrupt as stop:
            process.stdin.close()
            print("stopping: waiting for the replies in flight", file=sys.stderr)
            process.wait()
            return stop.status if isinstance(stop, Stopped) else 130


def stop_with_parent(spending: Spending) -> None:
    """In the worker process: stop when the pipe closes."""

    def watch() -> None:
        sys.stdin.read()
        spending.stop("the command has ended; run it again to go on")

    threading.Thread(target=watch, daemon=True).start()
