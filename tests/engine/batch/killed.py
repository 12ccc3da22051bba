"""Run a batch in a process that is killed at a random time, KILLS times, and then to its end.

    python killed.py CALLS KILLS WORDS…

Forks of one process, so that a run costs milliseconds. Prints how many runs were killed before they had ended.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from painter import replace_engine

from mrc_edit.engine.batch import command

LONGEST = 0.12  # seconds to a kill


def run(words: list[str]) -> int:
    """Fork a run; returns its process."""
    if child := os.fork():
        return child
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # the process ends with it
    try:
        command.main(words)
    except SystemExit as end:
        os._exit(end.code or 0)
    os._exit(99)


def main() -> None:
    calls, kills, *words = sys.argv[1:]
    replace_engine(setattr, Path(calls), seconds=0.004)
    chance, killed = random.Random(0), 0
    for _ in range(int(kills)):
        child = run(words)
        time.sleep(chance.uniform(0, LONGEST))
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    status = os.waitstatus_to_exitcode(os.waitpid(run(words), 0)[1])
    print(killed, status)


if __name__ == "__main__":
    main()
