"""Folders and files that appear whole or not at all, JSON files, and digests."""

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import MRCError
from .locks import locked, own
from .schema import Record, parse

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2

Check = Callable[[Path], None]  # raises MRCError unless the folder may be replaced


def nothing(target: Path) -> None:
    """The check that lets nothing be replaced."""
    raise MRCError(f"{target} exists already; give a folder that does not, or remove it")


def anything(target: Path) -> None:
    """The check of `--overwrite`."""


@contextmanager
def replace_folder(target: Path, check: Check = nothing, *, wait: bool = True) -> Iterator[Path]:
    """As `swapped_folder`, with the lock of `target`: one process at a time writes it.

    Args:
        wait: wait for another process that writes `target`; otherwise refuse.

    Raises:
        MRCError: as `check`, and as `locked`.
    """
    with locked(target, wait=wait), swapped_folder(target, check) as partial:
        yield partial


@contextmanager
def swapped_folder(target: Path, check: Check = nothing) -> Iterator[Path]:
    """Yield an empty sibling of `target` that takes its place when the block ends without error.

    The caller holds the lock of `target`. Where `target` is a link, the folder it points to is replaced. An empty
    folder may always be replaced; of any other `check` decides, at the beginning and again at the end. On an error
    the sibling is removed and `target` stays as it was. Old and new folder change places in one step and after the
    new one is on the disk: a killed process, or a power cut, leaves either of them whole, and a sibling that the next
    call removes. A file system that cannot exchange folders (NFS) needs two steps; a kill between them leaves the old
    folder under another name, which the next call puts back.
    """
    target = Path(os.path.realpath(target))
    clear_leftovers(target)
    check_target(target, check)
    partial = sibling(target)
    partial.mkdir()
    try:
        with naming(target):
            yield partial
        check_target(target, check)
        for folder, _, names in os.walk(partial):
            for path in (*names, "."):
                sync(Path(folder, path))
        put(partial, target)
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Add the path to errors of the system that have none, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(target)
        raise


def make_once(target: Path, ready: Callable[[], bool], make: Callable[[], None]) -> None:
    """Call `make`, which writes the folder `target`, unless it is `ready`; of several processes one does.

    The others wait. `make` has the lock of `target`.
    """
    if not ready():
        with locked(target):
            if not ready():
                make()


def check_target(target: Path, check: Check) -> None:
    if target.is_dir():
        if any(target.iterdir()):
            check(target)
    elif target.exists():
        raise MRCError(f"{target} is a file; give a folder to write to")


def foreign_files(folder: Path, own: Collection[str]) -> list[str]:
    """Files and links in `folder` and below that are not among `own`, as paths relative to it."""
    found = []
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found += [Path(root, name).relative_to(folder).as_posix() for name in names + links]
    return sorted(set(found) - set(own))


def claim_folder(folder: Path, record: str, kind: str) -> None:
    """Refuse a folder that holds something, but not the file `record`, which every `kind` has.

    Raises:
        MRCError: it does.
    """
    if not (folder / record).is_file() and folder.exists() and any(e.name[0] != "." for e in folder.iterdir()):
        raise MRCError(f"{folder} holds other things than {kind}; give an empty or a new folder")


def sibling(target: Path, kind: str = "") -> Path:
    """A new name beside `target`; random, since process numbers repeat in containers."""
    return target.with_name(f".{target.name}.partial-{kind}{secrets.token_hex(4)}")


def clear_leftovers(target: Path) -> None:
    """Remove what killed writers of `target` left beside it; put an old folder back that was on its way out.

    The caller holds the lock of `target`, so no other writer is at work.
    """
    start = f".{target.name}.partial-"
    for path in target.parent.iterdir():
        if path.name.startswith(f"{start}old-") and not target.exists():
            path.rename(target)
        elif path.name.startswith(start):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def put(partial: Path, target: Path) -> None:
    """Move `partial` to `target`. An old `target` is then at `partial`, or gone."""
    if not target.exists():
        partial.rename(target)
    elif not exchange(partial, target):
        old = sibling(target, "old-")
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes | str) -> None:
    """Write `data`, text as UTF-8, so that `path` holds either all of it or what it held before.

    Where `path` is a link, the file it points to is written; a pipe or device is written as it is.

    Raises:
        MRCError: it cannot be written (a full disk, a missing right).
    """
    content = data.encode() if isinstance(data, str) else data
    path = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            with replaced_file(path) as partial:
                partial.write_bytes(content)
    except OSError as error:
        reason = error.strerror or error
        raise MRCError(f"{path} cannot be written ({reason}); free some space there or choose another place") from None


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield the path of a new file that takes the place of `path` when the block ends without error.

    Of two writers at once the later one wins, whole. What killed writers of `path` left is removed where this user may.
    """
    for entry in path.parent.iterdir():
        if entry.name.startswith(f".{path.name}.partial-"):
            remove_leftover(entry)
    while (descriptor := own(partial := sibling(path), os.O_RDWR | os.O_CREAT | os.O_EXCL)) is None:
        pass  # another writer took it for a leftover before it was locked
    try:
        with naming(path):
            yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


def remove_leftover(partial: Path) -> None:
    """Remove the new file of a writer that is dead. One that is gone by now, or of another user, stops nobody."""
    with suppress(OSError):
        descriptor = own(partial, os.O_RDWR)
        if descriptor is not None:
            try:
                partial.unlink()
            finally:
                os.close(descriptor)


def read_json(path: Path, remedy: str) -> dict:
    """The JSON object in a file.

    Args:
        remedy: what to do about a file that is missing or damaged; the end of the error message.

    Raises:
        MRCError: there is no such file, or it holds something else.
    """
    return object_of(read_value(path, remedy), path, remedy)


def read_value(path: Path, remedy: str) -> object:
    """The JSON value in a file, of any type; else as `read_json`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MRCError(f"{path} is missing; {remedy}") from None
    except OSError as error:
        raise MRCError(f"{path} cannot be read ({error}); {remedy}") from None
    return parse_value(content, path, remedy)


def parse_json(content: bytes, path: Path, remedy: str) -> dict:
    """The JSON object in the content of a file; else as `read_json`."""
    return object_of(parse_value(content, path, remedy), path, remedy)


def parse_value(content: bytes, path: Path, remedy: str) -> object:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MRCError(f"{path} cannot be read, it is not JSON ({error}); {remedy}") from None


def object_of(value: object, path: Path, remedy: str) -> dict:
    if not isinstance(value, dict):
        raise MRCError(f"{path} holds a {type(value).__name__}, not an object; {remedy}")
    return value


def read_record(path: Path, kind: type[Record], remedy: str) -> Record:
    """The JSON object in a file as the dataclass `kind`.

    Raises:
        MRCError: as `read_json`, or an entry that does not fit the dataclass (`core.schema`).
    """
    value = read_json(path, remedy)
    try:
        return parse(kind, value, str(path))
    except MRCError as error:
        raise MRCError(f"{error}; {remedy}") from None


def write_json(path: Path, value: object) -> None:
    """Write JSON so that `path` holds all of it or what it held before."""
    write_file(path, json.dumps(value, indent=1) + "\n")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
