"""Arrays on disk, written part by part."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np


def write_array(path: Path, rows: int, parts: Iterable[np.ndarray]) -> None:
    """Write an .npy file of `rows` rows in all from consecutive parts of it, of one dtype and row shape.

    Not through a memory map: on a full disk the system kills a process that writes to one (SIGBUS), here it is an
    OSError.
    """
    with path.open("wb") as file:
        for number, part in enumerate(parts):
            if number == 0:
                layout = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, layout | {"shape": (rows, *part.shape[1:])})
            file.write(np.ascontiguousarray(part).data)
