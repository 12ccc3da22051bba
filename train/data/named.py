"""Data sets by name: a file or folder here, or a repository on the Hugging Face hub."""

from pathlib import Path, PurePosixPath

from ...core import hub
from ...core.errors import MRCError

# Tables, shards, lists and pictures; code is never fetched
ENDINGS = {".parquet", ".arrow", ".tar", ".json", ".jsonl", ".txt", ".png", ".jpg", ".jpeg", ".webp"}


def data_folder(data: str | Path) -> Path:
    """Where a data set is.

    Args:
        data: a file or folder, which goes first; or OWNER/NAME of a data set on the hub, where @REVISION may follow.
            A `Path` is never a name.

    Raises:
        MRCError: neither, or as `core.hub.snapshot`.
    """
    path = Path(data)
    if path.exists():
        return path
    if isinstance(data, Path) or not hub.is_hub_name(data):
        raise MRCError(f"{data} does not exist; give a data set, or its name OWNER/NAME on the Hugging Face hub")
    return hub.snapshot(data, needed, "dataset")


def needed(files: list[str]) -> list[str]:
    return [file for file in files if PurePosixPath(file).suffix.lower() in ENDINGS]
