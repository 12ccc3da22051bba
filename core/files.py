"""Folders and files that appear whole or not at all, JSON files, and digests."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MRCError
from .schema import Record, parse


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield an empty sibling of `target` that takes its place when the block ends without error.

    On an error the sibling is removed and `target` stays as it was. A killed process leaves the
    old `target` whole (or, between the two renames, none) and a sibling that the next call removes.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            old = target.parent / f".{target.name}.partial-old-{os.getpid()}"
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_file(path: Path, data: bytes | str) -> None:
    """Write `data`, text as UTF-8, so that `path` holds either all of it or what it held before."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path, remedy: str) -> dict:
    """The JSON object in a file.

    Args:
        remedy: what to do about a file that is missing or damaged; the end of the error message.

    Raises:
        MRCError: there is no such file, or it holds something else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MRCError(f"{path} is missing; {remedy}") from None
    except OSError as error:
        raise MRCError(f"{path} cannot be read ({error}); {remedy}") from None
    return parse_json(content, path, remedy)


def parse_json(content: bytes, path: Path, remedy: str) -> dict:
    """The JSON object in the content of a file.

    Raises:
        MRCError: it holds something else.
    """
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MRCError(f"{path} cannot be read, it is not JSON ({error}); {remedy}") from None
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
