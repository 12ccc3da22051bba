"""The one exception of this package."""

import sys
from collections.abc import Callable


class MRCError(ValueError):
    """Something given to `mrc_edit` cannot be used.

    The message says what was wrong, which value it was, and what to do about it.

    Attributes:
        argument: name of the argument of `Engine.edit` or of its kin that was wrong; empty for all other causes.
    """

    def __init__(self, message: str = "", *, argument: str = "") -> None:
        super().__init__(message)
        self.argument = argument


def run_command(command: Callable[[], None]) -> int:
    """Run a console script's body; an error of ours or of the disk becomes one line and exit status 2."""
    try:
        command()
    except (MRCError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
