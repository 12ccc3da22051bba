"""The shared library of native CPU kernels."""

import ctypes
from functools import cache
from pathlib import Path

from ..core.errors import MRCError
from . import __path__ as folders  # an editable install has two: the sources and the build

LIBRARY = "libmrc_kernels.so"


def find(name: str) -> Path | None:
    """A shared library that the build put into this package."""
    return next((path for folder in folders if (path := Path(folder) / name).is_file()), None)


@cache
def library() -> ctypes.CDLL:
    """Load the library once.

    Raises:
        MRCError: it was not built, which `pip install` does.
    """
    path = find(LIBRARY)
    if path is None:
        raise MRCError(f"{LIBRARY} is in none of {list(folders)}; run `pip install .` to build the native kernels")
    return ctypes.CDLL(str(path))


def pointer(array) -> ctypes.c_void_p | None:
    """Address of a C-contiguous array's first element, None for None."""
    # `array.ctypes` builds objects on the way, and a step asks ten times
    return None if array is None else ctypes.c_void_p(array.__array_interface__["data"][0])


STATUS = {1: "a size does not fit", 2: "a pointer is missing", 3: "there is not enough memory"}


def check(status: int, name: str) -> None:
    """Raise for what a kernel returned.

    Raises:
        ValueError: it was not zero.
    """
    if status:
        raise ValueError(f"{name} returned {status}: {STATUS.get(status, 'unknown')}")
