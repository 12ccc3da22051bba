"""Data sets of triplets: `open_triplets` chooses the reader by the files."""

import hashlib
from pathlib import Path

from ...core.errors import MRCError
from ...core.files import file_digest
from .named import data_folder
from .triplet import Triplet, Triplets, make_triplet

HUB_FOLDERS = ("data", "train", "data/train")  # where data sets on the hub have their files
LISTING = {".json", ".jsonl", ".parquet", ".arrow", ".tar"}  # files that list samples

__all__ = ["Triplet", "Triplets", "data_digest", "make_triplet", "open_data", "open_triplets"]


def open_data(
    data: str, rewards: str | Path | None = None, photographs: str | None = None, seed: int = 0,
    columns: str | None = None,
) -> Triplets:  # fmt: skip
    """The data of `mrc-train --data`: miniature:N, N triplets of the miniature world, or what `open_triplets` reads.

    Args:
        photographs: folder of backgrounds, for the miniature world.
        seed: of the miniature world.
        columns: as for `open_triplets`.
    """
    name, _, count = data.partition(":")
    if name != "miniature":
        if "://" in data:
            raise MRCError(f"{data} is read as a stream, for training without --cache; here give files on this disk")
        return open_triplets(data, rewards, columns)
    if columns is not None:
        raise MRCError(f"--columns is {columns!r}, but the miniature world has no columns; leave it out")
    if rewards is not None:
        raise MRCError(f"--rewards is {str(rewards)!r}, but the miniature world has its own; leave it out")
    from ..miniature.photographs import load_photographs
    from ..miniature.triplets import MiniatureTriplets

    if not (count.isascii() and count.isdigit() and len(count) < 10 and int(count)):
        raise MRCError(f"data is {data!r}; give miniature:N with N triplets, such as miniature:24000")
    return MiniatureTriplets(load_photographs(photographs), int(count), seed)


def open_triplets(path: str | Path, rewards: str | Path | None = None, columns: str | None = None) -> Triplets:
    """Open a data set of triplets.

    Args:
        path: parquet file or folder, `save_to_disk` folder, folder with metadata.jsonl, tar shards, a pattern such as
            a-{00..09}.tar, or InstructPix2Pix folders; or as text the OWNER/NAME of one on the Hugging Face hub.
        rewards: RewardEdit JSON, for InstructPix2Pix folders; `RewardEdit.json` in the folder is
            used by default.
        columns: of a table, or members of tar shards: source=…,edited=…,instruction=…; by default as known.

    Raises:
        MRCError: no data set of these kinds, or an empty one.
    """
    from .columns import parse_columns
    from .reward_edit import RewardEdit

    given = parse_columns(columns)
    path = Path(path) if "{" in str(path) else data_folder(path)
    for place in (path, *(path / folder for folder in HUB_FOLDERS)):
        if (found := open_files(place, given)) is not None:
            if rewards is not None:
                raise MRCError(f"{path} carries its own rewards; {rewards} goes with InstructPix2Pix folders")
            return found
    if not any(path.glob("*/prompt.json")):
        raise MRCError(
            f"{path} holds no data set: looked for *.parquet, dataset_info.json, metadata.jsonl, *.tar, */prompt.json, "
            f"also in {', '.join(HUB_FOLDERS)}"
        )
    if given:
        raise MRCError(f"{path} has triplet folders, --columns goes with tables and tar shards; leave it out")
    if rewards is None and (path / "RewardEdit.json").is_file():
        rewards = path / "RewardEdit.json"
    return RewardEdit(path, None if rewards is None else Path(rewards))


def data_digest(data: str, rewards: str | Path | None = None) -> str | None:
    """SHA-256 over what lists the samples; None for the miniature world.

    That is the content of JSON files, and names and sizes of tables, tar shards and, of folders without rewards,
    prompts. An image file that is replaced is not noticed.

    Raises:
        MRCError: as `open_data`.
    """
    if data.startswith("miniature:"):
        return None
    root = Path(data) if "{" in data else data_folder(data)
    places = [root, *(root / folder for folder in HUB_FOLDERS)]
    files = [file for place in places if place.is_dir() for file in sorted(place.iterdir()) if file.suffix in LISTING]
    files += [] if rewards is None else [Path(rewards)]
    digest = hashlib.sha256()
    for file in files or sorted(root.glob("*/prompt.json")) or data_files(root):
        content = file.suffix in (".json", ".jsonl") and file.name != "prompt.json"
        what = file_digest(file) if content else file.stat().st_size
        digest.update(f"{file.parent.name}/{file.name} {what}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def open_files(path: Path, columns: dict[str, str]) -> Triplets | None:
    """The table, image folder or tar shards at `path`, which may be a pattern of files; None for anything else.

    Raises:
        MRCError: what the readers raise, or files of a pattern that are missing.
    """
    from .shards import Shards
    from .tables import ImageFolder, Table, training_files

    files = data_files(path)
    if all(file.suffix == ".parquet" for file in files):
        return Table(path, columns, files)
    if all(file.suffix == ".tar" for file in files):
        return Shards(path, columns, files)
    if any(path.glob("*.parquet")):
        return Table(path, columns, training_files(path))
    if (path / "dataset_info.json").is_file():
        return Table(path, columns, [])
    if (path / "metadata.jsonl").is_file():
        return ImageFolder(path, columns)
    shards = sorted(path.glob("*.tar"))
    return Shards(path, columns, shards) if shards else None


def data_files(path: Path) -> list[Path]:
    """`path`, or the files of a pattern.

    Raises:
        MRCError: some of them are missing.
    """
    from ...core.braces import expand

    files = [path] if path.exists() else [Path(name) for name in expand(str(path))]
    if missing := [file for file in files if len(files) > 1 and not file.is_file()]:
        raise MRCError(f"{path}: {len(missing)} files do not exist, such as {missing[0]}; mend the pattern")
    return files
