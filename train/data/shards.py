"""WebDataset shards: KEY.source.jpg, KEY.edited.jpg and KEY.json in uncompressed tar files, or other members
by `--columns`.

Tar files are read by offset, so any sample can be read by its number, as with the other readers, and the
training order is the same shuffle for all.
"""

import tarfile
from dataclasses import replace
from pathlib import Path

from ...core.errors import MRCError
from ...core.paths import LARGEST
from .columns import SHARDS
from .triplet import Triplet, make_triplet, named, read_record

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
BLOCK = 512  # bytes of a tar header
Part = tuple[int, int] | str  # of a sample: offset and size, or why it cannot be read


class Shards:
    """See `Triplets`. The JSON has `edit`, and `scores` with `reward_text` where there are rewards.

    A file that breaks off or is damaged in the middle has a last sample that cannot be read and says so.
    """

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        self.columns = replace(SHARDS, **columns)
        files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
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
        record, columns = read_record(read_part(file, parts, ["json"])), self.columns
        source, edited = (
            read_part(file, parts, [f"{role}.{extension}" for extension in EXTENSIONS])
            for role in (columns.source, columns.edited)
        )
        instruction, scores, text = (record.get(name) for name in (columns.instruction, "scores", "reward_text"))
        return make_triplet(self.name(index), source, edited, instruction, scores, text)


def read_members(file: Path) -> dict[str, dict[str, Part]]:
    """The parts of every sample by key and extension.

    Raises:
        MRCError: no uncompressed tar file.
    """
    members: dict[str, dict[str, Part]] = {}
    if not file.is_file():
        raise MRCError(f"{file} is no file")
    fault, last = "", -1
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.offset <= last:  # a negative size leads back, for ever
                    raise tarfile.TarError("its members lead in a circle")
                last = member.offset
                add_member(members, member)
            end = tar.offset
        with file.open("rb") as opened:
            opened.seek(end)
            if opened.read(BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
                fault = f"damaged at byte {end:,}"
    except Exception as error:  # tarfile raises many types for damaged headers
        if not members:
            raise MRCError(f"{file} cannot be read as an uncompressed tar file ({error})") from None
        fault = f"damaged ({error})"
    members = dict(sorted(members.items()))
    if fault:
        members["(end)"] = {"json": f"{file.name} is {fault}, what follows is lost; fetch it again"}
    return members


def add_member(members: dict[str, dict[str, Part]], member: tarfile.TarInfo) -> None:
    """Note where the data of a tar member lie."""
    folder, _, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    key = f"{folder}/{stem}".removeprefix("./").removeprefix("/")
    if not member.isfile():
        return
    parts = members.setdefault(key, {})
    if member.issparse():
        parts[extension] = f"its {extension} is stored as a sparse file; pack it again without"
    elif extension in parts:
        parts[extension] = f"its {extension} is there twice; give every sample a key of its own"
    else:
        parts[extension] = (member.offset_data, member.size)


def read_part(file: Path, parts: dict[str, Part], names: list[str]) -> bytes:
    """The content of the first of these members.

    Raises:
        MRCError: none is there, or it cannot be read.
    """
    part = next((parts[name] for name in names if name in parts), None)
    if part is None:
        raise MRCError(f"it has no {names[0]}; its members are {sorted(parts)}")
    if isinstance(part, str):
        raise MRCError(part)
    offset, size = part
    if not 0 <= size <= LARGEST or offset + size > file.stat().st_size:
        raise MRCError(f"its {names[0]} has {size:,} bytes, more than {LARGEST:,} or than the file has")
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(size)
