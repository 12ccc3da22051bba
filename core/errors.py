"""The one exception of this package, and how its commands end."""

import io
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM)


class MRCError(ValueError):
    """Something given to `mrc_edit` cannot be used.

    The message says what was wrong, which value it was, and what to do about it.

    Attributes:
        argument: name of the argument of `Engine.edit` or of its kin that was wrong; empty for all other causes.
    """

    def __init__(self, message: str = "", *, argument: str = "") -> None:
        super().__init__(message)
        self.argument = argument


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM reached a command. A KeyboardInterrupt, since libraries clean up after that one."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def run_command(command: Callable[[], None]) -> int:
    """Run a console script's body; returns its exit status.

    An error of ours, of the disk or for want of memory becomes one line and status 2. Ctrl-C and SIGTERM end the
    command as an error would, so that nothing half-written stays; status 130 and 143.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name of a file may be no UTF-8
    try:
        with stopping(), plain_warnings():
            command()
    except (MRCError, OSError) as error:
        return complain(f"error: {error}", 2)
    except MemoryError as error:
        return complain(f"error: there is not enough memory ({error or 'an allocation failed'}); free some", 2)
    except Stopped as stopped:
        return complain(f"stopped by {stopped}", stopped.status)
    return 0


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show a warning as one line without its place in the source, which a user of a command did not write."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *place: f"warning: {' '.join(str(message).splitlines())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def reason(error: BaseException) -> str:
    """Type and first line of what a library raised."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"


def complain(message: str, status: int) -> int:
    """Print the message as one line."""
    print(" ".join(message.splitlines()), file=sys.stderr)
    return status


@contextmanager
def stopping() -> Iterator[None]:
    """Raise `Stopped` in this block on Ctrl-C and SIGTERM; once, so that a second one does not disturb cleaning up."""

    def stop(number: int, frame: object) -> None:
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = {number: signal.signal(number, stop) for number in STOPS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
