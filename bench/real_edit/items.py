"""The items of a Real-Edit folder: an image, one of its instructions, and the edit type."""

import hashlib
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import MRCError
from ...core.files import file_digest, read_json
from ...core.kinds import ENTRY
from ...core.kinds import KINDS as TYPES
from ...judge.reply import whole_pairs


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


def read_items(data: Path) -> tuple[list[Item], list[str]]:
    """Items of the folder's one JSON file, `{"IMAGE": ["1. Local: …", …]}`; images lie beside it or in a subfolder.

    Returns:
        The items, and a line for each image or instruction that is left out, such as an unknown edit type.

    Raises:
        MRCError: no such file or several, not of this form, or no item that can be used.
    """
    if not data.is_dir():
        raise MRCError(f"{data} is no folder; give the folder of Real-Edit")
    files = sorted(data.glob("*.json"))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise MRCError(
            f"{data} must hold one JSON file of instructions, it holds {names}; give the folder of Real-Edit"
        )
    items: list[Item] = []
    left_out: list[str] = []
    images: dict[str, Path] = {}  # by stem, after which the files of a run are named
    for image, entries in read_json(files[0], "fetch Real-Edit again").items():
        try:
            path = locate(data, image)
            if not isinstance(entries, list) or not entries:
                raise MRCError(f'{image} is not of the form {{"IMAGE": ["1. Local: …", …]}}: it has no instructions')
            if images.setdefault(path.stem, path) != path:
                raise MRCError(f"{image} and {images[path.stem].name} have one stem; give every image its own")
        except MRCError as error:
            left_out.append(str(error))
            continue
        for number, entry in enumerate(entries, start=1):
            try:
                items.append(read_item(path, number, entry))
            except MRCError as error:
                left_out.append(str(error))
    if not items:
        raise MRCError(f"{files[0]} has no item that can be used: {left_out[0] if left_out else 'it is empty'}")
    return items, left_out


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
