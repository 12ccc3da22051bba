"""Work in a child process: its memory goes back when it ends, and a crash in native code becomes an error message."""

import json
import signal
import subprocess
import sys
from typing import Any

from .errors import MRCError


def ask(module: str, request: dict[str, Any], failure: str) -> dict[str, Any]:
    """What `python -m module` answers to a request: it reads JSON and prints JSON in its last line.

    Raises:
        MRCError: `failure`, with the child's words.
    """
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, input=json.dumps(request), text=True, capture_output=True, check=False)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = "; that is mostly for want of memory: free some" if name == "SIGKILL" else ""
        raise MRCError(f"{failure}: its process was ended by {name}{hint}")
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-8:] or ["nothing was printed"]
        raise MRCError(f"{failure}: {' | '.join(words)}")
    return json.loads(done.stdout.splitlines()[-1])
