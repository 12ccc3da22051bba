"""What native libraries raise, as one MRCError."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import MRCError, reason

NO_MEMORY = re.compile(r"alloc|out of memory", re.IGNORECASE)  # ONNX Runtime, OpenVINO and PyTorch, CPU and CUDA
ADVICE = "edit fewer or smaller images at once, or free memory"


def memory_ran_out(error: BaseException) -> bool:
    """Whether a runtime's error says so; the runtimes have no common exception."""
    return isinstance(error, MemoryError) or bool(NO_MEMORY.search(str(error)))


@contextmanager
def computing(phase: str) -> Iterator[None]:
    """Name the phase in which a runtime fails.

    Raises:
        MRCError: instead of any other exception, which is its cause.
    """
    try:
        yield
    except MRCError:
        raise
    except Exception as error:
        if memory_ran_out(error):
            raise MRCError(f"there is not enough memory for {phase}; {ADVICE}") from error
        raise MRCError(
            f"{phase} failed ({reason(error)}); check that the model is whole, or export it again"
        ) from error


@contextmanager
def enough_memory() -> Iterator[None]:
    """Make an MRCError of a MemoryError, outside of the phases too."""
    try:
        yield
    except MemoryError as error:
        raise MRCError(f"there is not enough memory for the edit; {ADVICE}") from error


def as_error(error: BaseException) -> MRCError:
    """What to tell a caller of any failure in a thread that serves many: even a panic is no reason to end."""
    if isinstance(error, MRCError):
        return error
    failure = MRCError(f"the edit failed ({reason(error)}); the server goes on, ask for another edit")
    failure.__cause__ = error
    return failure
