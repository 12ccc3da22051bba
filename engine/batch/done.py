"""What earlier runs of a batch have done, and whether it is still what they left."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from ...core.errors import MRCError
from ...core.files import file_digest
from .item import Item
from .place import Entry, Place, read_ledgers


@dataclass
class Done:
    """By key.

    Attributes:
        edits: their entries of the ledger.
        failed: why an item could not be edited.
        withheld: keys of edits that `--safety` refused: they would be refused again.
        shards: SHA-256 of the tar files that are whole, by the name of the file.
    """

    edits: dict[str, Entry] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    withheld: set[str] = field(default_factory=set)
    shards: dict[str, str] = field(default_factory=dict)

    def add(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if "shard" in entry:
                self.shards[entry["shard"]] = entry["sha256"]
            elif "error" in entry:
                self.failed[entry["key"]] = entry["error"]
                self.withheld |= {entry["key"]} if entry.get("withheld") else set()
            else:
                self.edits[entry["key"]] = entry


def read_done(place: Place, items: Sequence[Item]) -> Done:
    """What is done, checked: an edit whose file is gone is to be made again, with all of its shard.

    Raises:
        MRCError: an image or a file that an earlier run wrote is not what it was.
    """
    done = Done()
    done.add(read_ledgers(place.work))
    for name in [name for name in done.shards if not (place.folder / name).exists()]:
        del done.shards[name]
    known = [item for item in items if item.key in done.edits and not item.problem]
    for item in tqdm(known, desc="check", unit="edit", disable=None if known else True):
        entry = done.edits[item.key]
        try:
            same = hashlib.sha256(item.read()).hexdigest() == entry["source"]
        except (MRCError, OSError):
            same = False
        if not same:
            raise MRCError(
                f"{item.name} is not the image that {item.key} in {place.folder} was made of; "
                "restore it, or give another place for the edits"
            )
        if is_packed(place, item, done):
            continue
        path = place.path(item)
        if not path.exists():
            del done.edits[item.key]
        elif file_digest(path) != entry["sha256"]:
            raise MRCError(f"{path} is not as this batch wrote it; move it away to have it edited again")
    for name, digest in done.shards.items():
        if file_digest(place.folder / name) != digest:
            raise MRCError(f"{place.folder / name} is not as this batch wrote it; move it away to have it made again")
    return done


def is_packed(place: Place, item: Item, done: Done) -> bool:
    """Whether the tar file that the item goes to is whole."""
    return bool(place.shards) and place.shards[item.shard].name in done.shards
