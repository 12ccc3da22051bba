"""The columns of known tables of triplets, and the images in them."""

from dataclasses import dataclass
from pathlib import Path

from .errors import MRCError
from .paths import file_inside


@dataclass(frozen=True)
class Columns:
    """Names of columns; in tar shards of members (without the type of the image) and of a field of the JSON."""

    source: str
    edited: str
    instruction: str

    def names(self) -> list[str]:
        return [self.source, self.edited, self.instruction]


# By the name that each data set has on the Hugging Face hub; rewards are written with the first one's columns
KNOWN = {
    "timbrooks/instructpix2pix-clip-filtered": Columns("original_image", "edited_image", "edit_prompt"),
    "osunlp/MagicBrush": Columns("source_img", "target_img", "instruction"),
    "fusing/instructpix2pix-1000-samples": Columns("input_image", "edited_image", "edit_prompt"),
    "BleachNick/UltraEdit": Columns("source_image", "edited_image", "edit_prompt"),
}
SHARDS = Columns("source", "edited", "edit")


def embedded_image(value: object, folder: Path | None = None) -> bytes | Path:
    """An image from the bytes in the table, or from the file in the table's folder that it names.

    Raises:
        MRCError: neither, a file outside the folder, or no folder.
    """
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        raise MRCError("it has no image; give its bytes or the path of a file in the table's folder")
    if value.get("bytes"):
        return value["bytes"]
    if folder is None:
        raise MRCError(f"its image is the file {value['path']!r}, not in the table; download the data set")
    return file_inside(folder, value["path"])
