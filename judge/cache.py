"""Replies on disk, a file each, whole or not there: what was answered once is never asked again.

FOLDER/ab/abcdef….json    {"model", "text", "tokens"}, by the SHA-256 of what was asked
"""

import json
from pathlib import Path

from ..core.errors import MRCError
from ..core.files import write_file
from .reply import Reply


def path_of(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.json"


def load(folder: Path, key: str) -> Reply | None:
    """The reply, or None if there is none yet."""
    path = path_of(folder, key)
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return Reply(str(entry["text"]), entry["tokens"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise MRCError(f"{path} is no stored reply ({error!r}); delete it, and it will be asked for again") from None


def store(folder: Path, key: str, model: str, reply: Reply) -> None:
    path = path_of(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"model": model, "text": reply.text, "tokens": reply.tokens}))
