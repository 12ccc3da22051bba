"""The shared library of native CPU kernels, which the build makes where it has a C++ compiler."""

import ctypes
import warnings
from functools import cache
from pathlib import Path

from ..core.errors import MRCError
from . import __path__ as folders  # an editable install has two: the sources and the build

LIBRARY = "libmrc_kernels.so"


def find(name: str) -> Path | None:
    """The path of a shared library that the build put into this package, None without it."""
    return next((path for folder in folders if (path := Path(folder) / name).is_file()), None)


@cache
def library() -> ctypes.CDLL:
    """Load the library once.

    Raises:
        MRCError: it was not built, or cannot be loaded.
    """
    path = find(LIBRARY)
    if path is None:
        raise MRCError(f"{LIBRARY} was not built; install a C++ compiler (g++ or clang) and run pip install again")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise MRCError(f"{LIBRARY} cannot be loaded: {error}") from error


@cache
def ready() -> bool:
    """Whether the library can be used; the first call warns if not."""
    try:
        library()
    except MRCError as error:
        warnings.warn(f"{error}; until then PyTorch's own operators do its work", stacklevel=2)
        return False
    return True


STATUS = {1: "a size does not fit", 2: "a pointer is missing", 3: "there is not enough memory"}


def check(status: int, name: str) -> None:
    """Raise for the code that a kernel returned.

    Raises:
        ValueError: it was not zero.
    """
    if status:
        raise ValueError(f"{name} returned {status}: {STATUS.get(status, 'unknown')}")
