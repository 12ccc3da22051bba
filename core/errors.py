"""The one exception of this package."""

import sys
from collections.abc import Callable


class MRCError(ValueError):
    """Something given to `mrc` cannot be used.

    The message says what was wrong, which value it was, and what to do about it.
    """


def run_command(command: Callable[[], None]) -> int:
    """Run a console script's body; an error of ours or of the disk becomes one line and exit status 2."""
    try:
        command()
    except (MRCError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
