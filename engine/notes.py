"""What an edit leaves out of its image or its texts: a warning, or, where somebody collects, a line for who asked."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

COLLECTED: ContextVar[list[str] | None] = ContextVar("COLLECTED", default=None)


def note(message: str) -> None:
    """Warn, at the place that called our caller; inside `collecting`, add the message to the list there instead."""
    notes = COLLECTED.get()
    if notes is None:
        warnings.warn(message, stacklevel=3)
    elif message not in notes:
        notes.append(message)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """The notes of the block, in this thread or task alone. Python keeps the texts of warnings for good, not these."""
    notes: list[str] = []
    token = COLLECTED.set(notes)
    try:
        yield notes
    finally:
        COLLECTED.reset(token)
