"""Hugging Face `datasets`: parquet, saved data sets, image folders with metadata.jsonl. Local only.

Columns: original_image, edit_prompt, edited_image; with rewards also reward_scores (three numbers) and
reward_text.
"""

import io
import json
from pathlib import Path

from PIL import Image

from ...core.errors import MRCError
from .reward_edit import inside
from .triplet import Triplet, make_triplet

NEEDED = {"original_image", "edit_prompt", "edited_image"}
OPTIONAL = {"reward_scores", "reward_text"}


def check_columns(columns: set[str], where: Path) -> None:
    if columns - NEEDED - OPTIONAL or NEEDED - columns:
        raise MRCError(
            f"{where} has unknown columns {sorted(columns - NEEDED - OPTIONAL)} and lacks {sorted(NEEDED - columns)}; "
            f"expected {sorted(NEEDED)} and perhaps {sorted(OPTIONAL)}"
        )


class Table:
    """A parquet file, a folder of them, or a `save_to_disk` folder; see `Triplets`."""

    def __init__(self, path: Path) -> None:
        import datasets

        self.name = path.name
        try:
            if (path / "dataset_info.json").is_file():
                rows = datasets.load_from_disk(str(path))
            else:
                files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
                rows = datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=None)
        except Exception as error:  # datasets and pyarrow raise many types for damaged files
            raise MRCError(f"{path} cannot be read as a table ({type(error).__name__}: {error})") from None
        check_columns(set(rows.column_names), path)
        if not len(rows):
            raise MRCError(f"{path} has no rows")
        for column in ("original_image", "edited_image"):
            try:
                rows = rows.cast_column(column, datasets.Image(decode=False))
            except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors are such
                raise MRCError(f"column {column} of {path} holds no images ({error})") from None
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Triplet:
        row = self.rows[index]
        name = f"{self.name} row {index}"
        source, edited = (open_image(name, row[column]) for column in ("original_image", "edited_image"))
        return make_triplet(name, source, edited, row["edit_prompt"], row.get("reward_scores"), row.get("reward_text"))


def open_image(name: str, value: object) -> Image.Image:
    """An image from the bytes in the table; paths are not followed.

    Raises:
        MRCError: no bytes, or no image.
    """
    if not isinstance(value, dict) or not value.get("bytes"):
        raise MRCError(f"sample {name}: the image is not in the table; embed its bytes")
    try:
        return Image.open(io.BytesIO(value["bytes"]))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MRCError(f"sample {name}: its image cannot be opened ({error})") from None


class ImageFolder:
    """`metadata.jsonl` with the columns above, images as file names inside the folder (`original_image` or
    Hugging Face's `original_image_file_name`); see `Triplets`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        try:
            rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines() if line]
        except (OSError, ValueError) as error:
            raise MRCError(f"{folder / 'metadata.jsonl'} is not JSON lines ({error})") from None
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise MRCError(f"{folder / 'metadata.jsonl'} is empty or holds lines that are no objects")
        # Hugging Face's image folders name the files of column X in X_file_name
        self.rows = [{name.removesuffix("_file_name"): value for name, value in row.items()} for row in rows]
        check_columns(set().union(*self.rows), folder)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Triplet:
        row = self.rows[index]
        name = f"{self.folder.name} line {index + 1}"
        source, edited = (inside(self.folder, str(row.get(c))) for c in ("original_image", "edited_image"))
        return make_triplet(
            name, source, edited, row.get("edit_prompt"), row.get("reward_scores"), row.get("reward_text")
        )
