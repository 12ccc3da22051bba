"""Replies on disk, one file each, written whole: an answered question is not sent again.

FOLDER/ab/abcdef….json    {"model", "text", "tokens"}, by the SHA-256 of the question
"""

import json
from pathlib import Path

from ..core.errors import MRCError
from ..core.files import read_json, write_file
from .reply import Reply, checked_reply


def path_of(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.json"


def load(folder: Path, key: str) -> Reply | None:
    """The stored reply; None if there is none yet.

    Raises:
        MRCError: a damaged file.
    """
    path = path_of(folder, key)
    if not path.is_file():
        return None
    remedy = "delete it, and the question is sent again"
    entry = read_json(path, remedy)
    try:
        return checked_reply(entry.get("text"), entry.get("tokens"))
    except MRCError as error:
        raise MRCError(f"{path} is no stored reply ({error}); {remedy}") from None


def store(folder: Path, key: str, model: str, reply: Reply) -> None:
    """Write the reply whole or not at all."""
    path = path_of(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"model": model, "text": reply.text, "tokens": reply.tokens}))
