"""One writer at a time: locks that the system releases when their process dies, in whatever way."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MRCError

held: set[int] = set()  # descriptors


def forget() -> None:
    """In a forked process: give up the parent's locks, which would otherwise stay when the parent is killed."""
    for descriptor in held:
        os.close(descriptor)
    held.clear()


os.register_at_fork(after_in_child=forget)


@contextmanager
def locked(target: Path, *, inside: bool = False, wait: bool = True) -> Iterator[None]:
    """Keep other processes and threads from writing `target`, which need not exist yet, until the block ends.

    Where `target` is a link, what it points to is locked.

    Args:
        inside: the lock is the file `.lock` in the folder `target`; otherwise `.NAME.lock` beside it.
        wait: wait for another writer, and say so on standard error; otherwise refuse.

    Raises:
        MRCError: another process writes there and `wait` is False, or the file system has no locks.
    """
    target = Path(os.path.realpath(target))
    (target if inside else target.parent).mkdir(parents=True, exist_ok=True)
    path = target / ".lock" if inside else target.with_name(f".{target.name}.lock")
    descriptor = acquire(path, target, wait)
    held.add(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: whoever waits for it sees that it is gone, and makes another
        held.discard(descriptor)
        os.close(descriptor)


def acquire(path: Path, target: Path, wait: bool) -> int:
    """The descriptor of the lock file `path`, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            take(descriptor, target, wait)
            if is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another writer removed the file before it was locked here


def take(descriptor: int, target: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise MRCError(
                f"another run is writing {target}; wait until it has ended, or give another place to write to"
            ) from None
        print(f"waiting for the run that is writing {target}", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise MRCError(
            f"{target} cannot be locked ({error.strerror}), so two runs could mix there; give a place on a local disk"
        ) from None


def own(path: Path, flags: int) -> int | None:
    """The descriptor of a file opened with `flags`, locked as long as it is open; None if another writer has it.

    A file system without locks gives an existing file to nobody, and a new one to its maker.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owned = bool(flags & os.O_CREAT) and not isinstance(error, BlockingIOError)
    else:
        owned = is_at(descriptor, path)
    if owned:
        return descriptor
    os.close(descriptor)
    return None


def is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
