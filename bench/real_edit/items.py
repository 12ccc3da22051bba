"""The items of a Real-Edit folder: an image, one of its instructions, and the edit type."""

import hashlib
import os
import re
import reprlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import MRCError
from ...core.files import file_digest, read_json
from ...core.kinds import KINDS as TYPES
from ...judge.reply import whole_pairs

# "3. Add: …"; two images of the full set write "3. Add Edit: …"
ENTRY = re.compile(rf"(?:\d++\s*+\.)?\s*+({'|'.join(TYPES)})(?:\s+edit)?\s*:\s*(\S.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Item:
    image: Path
    number: int  # of the instruction, from 1
    type: str  # one of TYPES
    instruction: str

    @property
    def name(self) -> str:
        """Unique in the data set, and the file name of the edit."""
        return f"{self.image.stem}-{self.number}-{self.type}"

    @property
    def seed(self) -> int:
        """The item's own, so that an edit depends on no other item: 32 bits of its name's SHA-256."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4])


def read_items(data: Path) -> list[Item]:
    """Items of the folder's one JSON file, `{"IMAGE": ["1. Local: …", …]}`; images lie beside it or in a subfolder.

    Raises:
        MRCError: no such file or several, not of this form, an unknown edit type, or an image that is missing.
    """
    if not data.is_dir():
        raise MRCError(f"{data} is no folder; give the folder of Real-Edit")
    files = sorted(data.glob("*.json"))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise MRCError(
            f"{data} must hold one JSON file of instructions, it holds {names}; give the folder of Real-Edit"
        )
    images = read_json(files[0], "fetch Real-Edit again")
    if not images or not all(isinstance(entries, list) for entries in images.values()):
        raise MRCError(f'{files[0]} is not of the form {{"IMAGE": ["1. Local: …", …]}}; give the folder of Real-Edit')
    items = [
        read_item(locate(data, image), number, entry)
        for image, entries in images.items()
        for number, entry in enumerate(entries, start=1)
    ]
    if not items:
        raise MRCError(f"{files[0]} holds images without instructions; fetch Real-Edit again")
    name, count = Counter(item.name for item in items).most_common(1)[0]
    if count > 1:
        raise MRCError(f"{files[0]} has {count} items {name}; give every image a stem of its own")
    return items


def locate(data: Path, image: str) -> Path:
    folders = [data, *sorted(path for path in data.iterdir() if path.is_dir())]
    if Path(image).name != image:
        raise MRCError(f"{image[:80]!r} is no plain file name; the images lie in {data} or a folder in it")
    for folder in folders:
        if os.path.isfile(folder / image):  # noqa: PTH113  # Path.is_file raises for names that are too long
            return folder / image
    raise MRCError(f"{image[:80]} is missing in {data}; fetch Real-Edit again, or take the image out of its JSON file")


def read_item(image: Path, number: int, entry: object) -> Item:
    text = entry.strip() if isinstance(entry, str) and whole_pairs(entry) == entry else ""
    match = ENTRY.fullmatch(text)
    if not match:
        kinds = ", ".join(TYPES)
        raise MRCError(
            f'{image.name}: {reprlib.repr(entry)} is no instruction such as "1. Local: …"; the edit types are {kinds}'
        )
    return Item(image, number, match[1].lower(), match[2].strip())


def digest(items: list[Item]) -> str:
    """SHA-256 of images and instructions, whatever their order."""
    files = {path: file_digest(path) for path in {item.image for item in items}}
    lines = sorted(f"{item.name} {files[item.image]} {item.instruction}" for item in items)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
