"""The items of what a batch is given: a folder, a table, or tar shards."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ...core.braces import expand
from ...core.errors import MRCError
from .item import Item
from .shards import shard_items
from .tables import TABLES

READERS = TABLES | {".tar": shard_items}
IN_FOLDERS = ("instructions.json", "instructions.jsonl", "instructions.csv", "metadata.jsonl", "metadata.csv")


def open_items(place: str, count: int) -> list[Item]:
    """All items, in order; those that cannot be edited have a `problem`.

    Args:
        place: a folder with a table of `IN_FOLDERS`, parquet files or tar files; such a file; or a pattern of them,
            with braces.
        count: edits of each.

    Raises:
        MRCError: nothing of these kinds, a file that cannot be read, or two items with one key.
    """
    files = find_files(place)
    read = READERS[files[0].suffix.lower()]
    bar = tqdm(files, desc="read", unit="file", disable=None if len(files) > 1 else True)
    items = [item for file in bar for item in read(file)]
    if not items:
        raise MRCError(f"{place} has no items; give images with instructions")
    items = [one for item in items for one in several(item, count)]
    for key, times in Counter(item.key for item in items if not item.problem).items():
        if times > 1:
            raise MRCError(f"{times} items of {place} have the key {key}; give each a key of its own, in a column key")
    return items


def several(item: Item, count: int) -> list[Item]:
    """An item as often as it is edited, each time with its own key."""
    if item.problem or count == 1:
        return [item]
    return [replace(item, key=f"{item.key}-{number}") for number in range(1, count + 1)]


def find_files(place: str) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        return files_of(path)
    files = [path] if path.exists() else [Path(name) for name in expand(place)]
    if missing := [file for file in files if not file.is_file()]:
        raise MRCError(f"{missing[0]} does not exist; give a folder, a table or tar files")
    if len(kinds := {file.suffix.lower() for file in files}) > 1 or not kinds <= READERS.keys():
        raise MRCError(f"{place} is {', '.join(sorted(kinds)) or 'no file'}; give {', '.join(READERS)}, or a folder")
    return files


def files_of(folder: Path) -> list[Path]:
    """The one table of a folder, or all its parquet files or tar files.

    Raises:
        MRCError: none of these, or of several kinds.
    """
    tables = [[folder / name] for name in IN_FOLDERS if (folder / name).is_file()]
    found = [*tables, *filter(None, (sorted(folder.glob(f"*{kind}")) for kind in (".parquet", ".tar")))]
    if len(found) != 1:
        names = ", ".join(files[0].name for files in found) or "none"
        raise MRCError(f"{folder} must have one of {', '.join(IN_FOLDERS)}, *.parquet, *.tar; it has {names}")
    return found[0]
