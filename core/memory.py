"""Memory that is free, before much of it is taken, and that is given back when it was used."""

import ctypes
import os
from pathlib import Path

from .errors import MRCError

GROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes of main memory that this process may still take, by system and control group; None if unknown."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:  # no Linux
        return None
    try:
        limit, used = ((GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            limits.append(int(limit) - int(used))
    except (OSError, ValueError):  # no control group, or an old kind
        pass
    return max(0, min(limits, default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")))


def check_memory(needed: int, what: str, free: int | None = None, place: str = "main memory") -> None:
    """Refuse what does not fit.

    Args:
        needed: bytes that `what` takes.
        free: bytes that are there; None for those of main memory.

    Raises:
        MRCError: it does not fit; the message has both figures.
    """
    free = free_memory() if free is None else free
    if free is not None and needed > free:
        raise MRCError(
            f"{what} takes {needed / 1e9:.1f} GB of {place} and {free / 1e9:.1f} GB are free; use a machine with more, "
            "or half precision"
        )


def return_freed_memory() -> None:
    """Give what was freed back to the system: glibc keeps gigabytes of weights that came in small pieces.

    Other C libraries have no such call, and nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
