"""Data sets of triplets: `open_triplets` chooses the reader by the files."""

from collections.abc import Callable
from pathlib import Path

from ...core.errors import MRCError
from .named import data_folder
from .triplet import Triplet, Triplets, make_triplet

__all__ = ["Triplet", "Triplets", "make_triplet", "open_data", "open_triplets"]


def open_data(data: str, rewards: str | Path | None = None, photographs: str | None = None, seed: int = 0) -> Triplets:
    """The data of `mrc-train --data`: miniature:N, N triplets of the miniature world, or what `open_triplets` reads.

    Args:
        photographs: folder of backgrounds, for the miniature world.
        seed: of the miniature world.
    """
    name, _, count = data.partition(":")
    if name != "miniature":
        return open_triplets(data, rewards)
    from ..miniature.photographs import load_photographs
    from ..miniature.triplets import MiniatureTriplets

    if not (count.isascii() and count.isdigit() and len(count) < 10 and int(count)):
        raise MRCError(f"data is {data!r}; give miniature:N with N triplets, such as miniature:24000")
    return MiniatureTriplets(load_photographs(photographs), int(count), seed)


def open_triplets(path: str | Path, rewards: str | Path | None = None) -> Triplets:
    """Open a data set of triplets.

    Args:
        path: parquet file or folder, `save_to_disk` folder, folder with metadata.jsonl, tar shards,
            or InstructPix2Pix folders; or as text OWNER/NAME of such a data set on the Hugging Face hub.
        rewards: RewardEdit JSON, for InstructPix2Pix folders; `RewardEdit.json` in the folder is
            used by default.

    Raises:
        MRCError: no data set of these kinds, or an empty one.
    """
    from .reward_edit import RewardEdit
    from .shards import Shards
    from .tables import ImageFolder, Table

    path = data_folder(path)
    readers: list[tuple[Callable[[Path], Triplets], bool]] = [
        (Table, path.suffix == ".parquet" or any(path.glob("*.parquet")) or (path / "dataset_info.json").is_file()),
        (ImageFolder, (path / "metadata.jsonl").is_file()),
        (Shards, path.suffix == ".tar" or any(path.glob("*.tar"))),
    ]
    for reader, fits in readers:
        if fits:
            if rewards is not None:
                raise MRCError(f"{path} carries its own rewards; {rewards} goes with InstructPix2Pix folders")
            return reader(path)
    if not any(path.glob("*/prompt.json")):
        raise MRCError(
            f"{path} holds no data set: looked for *.parquet, dataset_info.json, metadata.jsonl, *.tar, */prompt.json"
        )
    if rewards is None and (path / "RewardEdit.json").is_file():
        rewards = path / "RewardEdit.json"
    return RewardEdit(path, None if rewards is None else Path(rewards))
