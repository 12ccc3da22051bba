"""A private temporary folder that a killed process does not leave for ever."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .locks import is_at, own

PREFIX = "mrc-private-"


@contextmanager
def private_folder() -> Iterator[Path]:
    """An empty folder in TMPDIR that this user alone can read, removed at the end.

    Those that killed processes of this user left there are removed first. Its lock tells that it is in use.
    """
    for entry in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        remove_leftover(entry)
    folder, descriptor = new_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def new_folder() -> tuple[Path, int]:
    """A folder, and the descriptor that locks it. Without locks there (NFS) nobody takes it for a leftover either."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = False
        except OSError as error:
            taken = isinstance(error, BlockingIOError)
        if not taken and is_at(descriptor, folder):
            return folder, descriptor
        os.close(descriptor)  # another process took it for a leftover before it was locked


def remove_leftover(folder: Path) -> None:
    """Remove a folder that no process uses; those of other users stay."""
    with suppress(OSError):
        if folder.lstat().st_uid != os.getuid():
            return
        descriptor = own(folder, os.O_RDONLY | os.O_DIRECTORY)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
