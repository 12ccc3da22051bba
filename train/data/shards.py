"""WebDataset shards: KEY.source.jpg, KEY.edited.jpg and KEY.json in uncompressed tar files, or other members
by `--columns`.

Tar files are read by offset, so any sample can be read by its number, as with the other readers, and the
training order is the same shuffle for all.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...core.columns import SHARDS, Columns
from ...core.errors import MRCError
from ...core.shards import EXTENSIONS, read_members, read_part
from .triplet import Triplet, make_triplet, named, read_record


class Shards:
    """See `Triplets`. The JSON has `edit`, and `scores` with `reward_text` where there are rewards.

    A file that breaks off or is damaged in the middle has a last sample that cannot be read and says so.
    """

    def __init__(self, path: Path, columns: dict[str, str], files: list[Path]) -> None:
        self.columns = replace(SHARDS, **columns)
        self.samples = [((file, key), parts) for file in files for key, parts in read_members(file).items()]
        if not self.samples:
            raise MRCError(f"{path} holds no sample; expected KEY.source.jpg, KEY.edited.jpg, KEY.json in tar files")

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        (file, key), _ = self.samples[index]
        return f"{file.name}:{key}"

    @named
    def __getitem__(self, index: int) -> Triplet:
        (file, _), parts = self.samples[index]
        return sample_triplet(self.name(index), partial(read_part, file, parts), self.columns)


def sample_triplet(name: str, read: Callable[[list[str]], bytes], columns: Columns) -> Triplet:
    """The triplet of a sample; `read` gives the content of the first of some members."""
    record = read_record(read(["json"]))
    source, edited = (
        read([f"{role}.{extension}" for extension in EXTENSIONS]) for role in (columns.source, columns.edited)
    )
    instruction, scores, text = (record.get(key) for key in (columns.instruction, "scores", "reward_text"))
    return make_triplet(name, source, edited, instruction, scores, text)
