"""Arrays on disk, written part by part."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def write_array(path: Path, parts: Iterable[np.ndarray]) -> None:
    """Write an .npy file of consecutive parts, of one dtype and row shape."""
    with growing_array(path) as append:
        for part in parts:
            append(part)


@contextmanager
def growing_array(path: Path) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends a part to the .npy file `path`, all of one dtype and row shape.

    Not through a memory map: on a full disk the system kills a process that writes to one (SIGBUS), here it is an
    OSError.
    """
    rows = 0
    with path.open("wb") as file:

        def append(part: np.ndarray) -> None:
            nonlocal rows
            rows += len(part)
            place = file.tell()
            file.seek(0)
            # numpy leaves room in the header for more rows, so its length stays
            layout = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, layout | {"shape": (rows, *part.shape[1:])})
            file.seek(max(place, file.tell()))
            file.write(np.ascontiguousarray(part).data)

        yield append
