"""What a runtime made of a graph for this machine, kept between processes: in the user's cache folder, by digests."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from ...core.errors import MRCError
from ...core.files import file_digest, foreign_files, make_once, swapped_folder
from .exported import without_cache

Session = TypeVar("Session")
DIGESTS = "digests.json"
KINDS = {".onnx", ".data", ".engine", ".profile", ".bin"}  # endings of what the runtimes write


def place_of(cache: Path, name: str, depends_on: Iterable[str]) -> Path:
    """The folder in the cache for what all of `depends_on` decides, such as digests of the graph's files."""
    return cache / f"{name}-{hashlib.sha256(chr(10).join(depends_on).encode()).hexdigest()[:16]}"


def kept(
    place: Path,
    make: Callable[[Path], object],
    open_kept: Callable[[Path], Session],
    open_plain: Callable[[], Session],
) -> Session:
    """A session over what `make` wrote to `place`, in this process or an earlier one.

    Args:
        make: fills an empty folder.
        open_kept: opens such a folder; only after its files are found to be as they were written.
        open_plain: opens the graph without any cache; what is wrong with the graph itself, it raises.
    """
    try:
        make_once(place, lambda: intact(place), lambda: write(place, make, open_kept))
        return open_kept(place)
    except (MRCError, OSError) as error:
        session = open_plain()
        without_cache(place.parent, str(error))
        return session


def write(place: Path, make: Callable[[Path], object], open_kept: Callable[[Path], object]) -> None:
    """Fill `place`, whole or not at all; the caller holds its lock."""
    with swapped_folder(place, check_cached) as new:
        make(new)
        open_kept(new)  # a runtime may be silent about a full disk
        digests = {path.name: file_digest(path) for path in new.iterdir()}
        (new / DIGESTS).write_text(json.dumps(digests))


def intact(place: Path) -> bool:
    """Whether a cached graph is there and is what this user wrote."""
    try:
        digests = json.loads((place / DIGESTS).read_text())
        mine = place.stat().st_uid == os.getuid()
        return mine and bool(digests) and all(file_digest(place / Path(n).name) == digests[n] for n in digests)
    except (OSError, ValueError, AttributeError):
        return False


def check_cached(place: Path) -> None:
    """Refuse to replace a folder that holds something else than a cached graph."""
    if foreign := [name for name in foreign_files(place, (DIGESTS,)) if Path(name).suffix not in KINDS]:
        raise MRCError(f"{place} holds {foreign[0]}, which is of no cached graph; remove it")
