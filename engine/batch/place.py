"""Where the edits of a batch go, and its records there.

OUT/KEY.png                       an edit; or, where shards come out, OUT/SHARD.tar
OUT/errors.jsonl                  what could not be edited, and why
OUT/.mrc-batch/batch.json         what was asked for
OUT/.mrc-batch/model.json         what the model made of it
OUT/.mrc-batch/done-….jsonl       the ledger: a line a pass, a file a process
OUT/.mrc-batch/shards/SHARD/      edits of a shard that is not whole yet
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.braces import expand
from ...core.errors import MRCError
from ...core.files import read_json, sync, write_json
from ...core.locks import locked
from ..outputs import image_format
from .item import Item

WORK, ERRORS = ".mrc-batch", "errors.jsonl"
PARTIAL = "partial-"  # how files begin that are being written
Entry = dict[str, Any]  # of the ledger
# What an entry has at least: an edit, an item that failed, or a shard
ENTRIES: tuple[Mapping[str, type], ...] = (
    {"key": str, "seed": int, "source": str, "sha256": str}, {"key": str, "error": str}, {"shard": str, "sha256": str},
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where edits go.

    Attributes:
        folder: of everything.
        ending: of the images, with its dot.
        shards: the tar files to write, by those that the items come from; empty for a folder of images.
    """

    folder: Path
    ending: str
    shards: dict[str, Path] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.folder / WORK

    @property
    def format(self) -> str:
        """Pillow's name."""
        return image_format(Path(f"-{self.ending}"))

    def path(self, item: Item) -> Path:
        """The file of an edit; in a shard's own folder until that is whole."""
        folder = self.parts(item.shard) if self.shards else self.folder
        return folder / f"{item.key}{self.ending}"

    def parts(self, shard: str) -> Path:
        return self.work / "shards" / self.shards[shard].name


def open_place(out: str, items: Sequence[Item], ending: str) -> Place:
    """Where `out` says: a folder, or as many tar files of one folder as the items come from.

    Raises:
        MRCError: another number of tar files, or tar files in several folders.
    """
    if not out.endswith(".tar"):
        if Path(out).is_file():
            raise MRCError(f"{out} is a file; give a folder, or .tar for tar files")
        return Place(Path(out), f".{ending}")
    files = [Path(name) for name in expand(out)]
    shards = list(dict.fromkeys(item.shard for item in items))
    if not all(shards) or len(shards) != len(files):
        there = f"{len(shards)} tar files" if all(shards) else "no tar file"
        raise MRCError(f"{out} names {len(files)} tar files and the input is {there}; give as many, or a folder")
    if len(folders := {file.parent for file in files}) > 1:
        raise MRCError(f"{out} names {len(folders)} folders; give tar files of one")
    return Place(files[0].parent, f".{ending}", dict(zip(shards, files, strict=True)))


def settle(path: Path, record: Mapping[str, Any]) -> None:
    """Write what a batch was begun with, or compare: two settings never mix.

    Raises:
        MRCError: it was begun with something else.
    """
    with locked(path.parent, inside=True):
        if not path.is_file():
            write_json(path, record)
            return
    begun = read_json(path, "remove the folder to begin anew")
    for name, value in json.loads(json.dumps(record)).items():
        if begun.get(name) != value:
            raise MRCError(
                f"the batch in {path.parent.parent} was begun with {name} {begun.get(name)!r:.80} and this run has "
                f"{value!r:.80}; give the same, or another place for the edits"
            )


def new_ledger(work: Path) -> Path:
    """A name for what one process has done: no other process writes there, and none goes on behind a broken line."""
    return work / f"done-{secrets.token_hex(8)}.jsonl"


def add_to(ledger: Path, entries: Sequence[Entry]) -> None:
    """Add a line, which is on the disk when this returns."""
    new = not ledger.exists()
    with ledger.open("ab") as file:
        file.write(json.dumps(entries).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync(ledger.parent)


def read_ledgers(work: Path) -> list[Entry]:
    """The entries of all processes. A line that a power cut left unfinished is as if it had never been.

    Raises:
        MRCError: a finished line is damaged.
    """
    entries: list[Entry] = []
    for path in sorted(work.glob("done-*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            entries += entries_of(line, path)
    return entries


def entries_of(line: bytes, ledger: Path) -> list[Entry]:
    try:
        entries = json.loads(line)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(any(fits(entry, kind) for kind in ENTRIES) for entry in entries):
        raise MRCError(f"{ledger} has a damaged line; remove that file, and the edits that it lists are made again")
    return entries


def fits(entry: object, kind: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), its) for name, its in kind.items())
