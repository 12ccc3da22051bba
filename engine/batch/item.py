"""One item of a batch, its key and its seed."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from ...core.errors import MRCError

LONGEST = 200  # bytes of a part of a key, which becomes the name of a file


@dataclass(frozen=True)
class Item:
    """One edit to make.

    Attributes:
        key: unique in the batch; names the edit and chooses its seed.
        name: of its image, as the table or the shard has it.
        read: gives the bytes of the image; raises MRCError or OSError.
        shard: the tar file that it comes from; empty for what comes from a table.
        problem: why it cannot be edited; empty for most.
    """

    key: str
    name: str
    instruction: str
    read: Callable[[], bytes]
    shard: str = ""
    problem: str = ""


def broken(key: str, name: str, problem: object, shard: str = "") -> Item:
    """An item that cannot be edited."""

    def read() -> NoReturn:
        raise MRCError(str(problem))

    return Item(key, name, "", read, shard, str(problem))


def key_problem(key: str) -> str:
    """Why a key cannot name a file in a folder; empty if it can."""
    parts = key.split("/")
    if not key.isprintable() or "\\" in key or any(len(part.encode()) > LONGEST for part in parts):
        return f"its key {key[:60]!r} cannot be the name of a file; give it another"
    if any(not part.strip() or part.startswith(".") for part in parts):
        return f"its key {key[:60]!r} has an empty or a hidden part; give it another"
    return ""


def seed_of(seed: int, key: str) -> int:
    """The seed of an item: 32 bits of the SHA-256 of both, so that an edit depends on no other item."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:4])


def digest_of(items: Iterable[Item]) -> str:
    """SHA-256 of the keys and instructions, in order. Images are not read."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.key, item.instruction, item.problem != ""]).encode() + b"\n")
    return digest.hexdigest()
