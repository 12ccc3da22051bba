"""Files that another's folder names."""

from pathlib import Path, PurePath

from .errors import MRCError

LARGEST = 1 << 29  # bytes of a file that is read whole


def file_inside(root: Path, name: object) -> Path:
    """The file that `name` means in the folder `root`.

    Raises:
        MRCError: no text, no file, or a name or link that leads out of `root`.
    """
    if not isinstance(name, str):
        raise MRCError(f"a {type(name).__name__} names a file of {root}; give its path as text")
    climbs = ".." in PurePath(name).parts  # such a name must not reach the blobs
    allowed = [root.resolve()] if climbs else roots(root)
    root = root.resolve()
    try:
        path = (root / name).resolve()
        found = path.is_file()  # a pipe would block its reader
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, half a surrogate pair, a circle of links
        raise MRCError(f"{name[:80]!r} is no file name ({str(error)[:80]})") from None
    if not any(path.is_relative_to(place) for place in allowed):
        raise MRCError(f"{name!r} leads out of {root}; remove it")
    if not found:
        raise MRCError(f"{name!r} is no file in {root}; restore or remove it")
    return path


def roots(folder: Path) -> list[Path]:
    """Where the files of a folder may lie: in it, or among the blobs of a Hugging Face cache.

    There a folder `models--…/snapshots/REVISION` has links into `models--…/blobs`, which may be links in turn into
    `blobs` of the whole cache.
    """
    whole = folder.absolute()
    caches = [parent.parents[:2] for parent in whole.parents if parent.name == "snapshots"]
    blobs = [place / "blobs" for places in caches for place in places]
    return [whole.resolve(), *(path.resolve() for path in blobs)]


def read_inside(root: Path, name: object, limit: int = LARGEST) -> bytes:
    """The content of such a file.

    Raises:
        MRCError: as `file_inside`, and more than `limit` bytes.
    """
    path = file_inside(root, name)
    if (size := path.stat().st_size) > limit:
        raise MRCError(f"{path} has {size:,} bytes, more than {limit:,}")
    return path.read_bytes()
