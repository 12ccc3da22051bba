"""Files that another's folder names, and folders of the Hugging Face cache."""

import os
from pathlib import Path

from .errors import MRCError

LARGEST = 1 << 29  # bytes of a file that is read whole


def file_inside(root: Path, name: object) -> Path:
    """The file that `name` means in the folder `root`.

    Raises:
        MRCError: no text, no file, or a name or link that leads out of `root`.
    """
    if not isinstance(name, str):
        raise MRCError(f"a {type(name).__name__} names a file of {root}; give its path as text")
    root = root.resolve()
    try:
        path = (root / name).resolve()
        found = path.is_file()  # a pipe would block its reader
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, half a surrogate pair, a circle of links
        raise MRCError(f"{name[:80]!r} is no file name ({str(error)[:80]})") from None
    if not path.is_relative_to(root):
        raise MRCError(f"{name!r} leads out of {root}; remove it")
    if not found:
        raise MRCError(f"{name!r} is no file in {root}; restore or remove it")
    return path


def read_inside(root: Path, name: object, limit: int = LARGEST) -> bytes:
    """The content of such a file.

    Raises:
        MRCError: as `file_inside`, and more than `limit` bytes.
    """
    path = file_inside(root, name)
    if (size := path.stat().st_size) > limit:
        raise MRCError(f"{path} has {size:,} bytes, more than {limit:,}")
    return path.read_bytes()


def snapshot(folder: Path) -> Path:
    """The newest revision in a folder `models--…` of a Hugging Face cache; any other path as it is.

    Raises:
        MRCError: the folder has no revision, or several and none is its `main`.
    """
    if not (folder.name.startswith("models--") and (folder / "snapshots").is_dir()):
        return folder
    main = folder / "refs" / "main"
    there = sorted(path.name for path in (folder / "snapshots").iterdir())
    revision = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else "".join(there)
    if revision not in there:
        raise MRCError(f"{folder} has the revisions {there}, and refs/main says {revision!r:.50}; give snapshots/…")
    return folder / "snapshots" / revision


def roots(folder: Path) -> list[Path]:
    """Where the files of a model folder may lie: in it, or among the blobs of a Hugging Face cache.

    There a folder `snapshots/REVISION` has links into `blobs` beside `snapshots`.
    """
    whole = folder.absolute()
    blobs = [parent.parent / "blobs" for parent in whole.parents if parent.name == "snapshots"]
    return [whole.resolve(), *(path.resolve() for path in blobs)]


def check_links(folder: Path) -> None:
    """Refuse a model folder with links to files outside `roots`.

    Raises:
        MRCError: it has one.
    """
    allowed = roots(folder)
    for root, folders, names in os.walk(folder):
        for path in (Path(root, name) for name in folders + names):
            if path.is_symlink() and not any(path.resolve().is_relative_to(each) for each in allowed):
                raise MRCError(f"{path} links out of {folder}; copy what it links to, or give it as vae or base")
