"""Hugging Face `datasets`: parquet, saved data sets, image folders with metadata.jsonl. Local only.

Columns as `columns.py` says; with rewards also reward_scores (three numbers) and reward_text.
"""

from pathlib import Path

from PIL import Image

from ...core.errors import MRCError
from ...core.paths import file_inside
from .columns import REWARDS, choose_columns
from .triplet import Triplet, make_triplet, named, read_record


class Table:
    """A parquet file, a folder of them, or a `save_to_disk` folder; see `Triplets`."""

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        import datasets

        self.path = path
        try:
            if (path / "dataset_info.json").is_file():
                rows = datasets.load_from_disk(str(path))
                for file in rows.cache_files:  # which state.json names
                    file_inside(path, file["filename"])
            else:
                files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
                rows = datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=None)
        except Exception as error:  # datasets and pyarrow raise many types for damaged files
            raise MRCError(f"{path} cannot be read as a table ({type(error).__name__}: {error})") from None
        names = set(rows.column_names)
        self.columns = choose_columns(names, path, columns)
        rows = rows.select_columns(self.columns.names() + sorted(REWARDS & names))  # others would be decoded
        if not len(rows):
            raise MRCError(f"{path} has no rows")
        for column in (self.columns.source, self.columns.edited):
            try:
                rows = rows.cast_column(column, datasets.Image(decode=False))
            except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors are such
                raise MRCError(f"column {column} of {path} holds no images ({error})") from None
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"{self.path.name} row {index}"

    @named
    def __getitem__(self, index: int) -> Triplet:
        row, columns = self.rows[index], self.columns
        source, edited = (embedded_image(row[column]) for column in (columns.source, columns.edited))
        instruction, scores, text = (row.get(name) for name in (columns.instruction, "reward_scores", "reward_text"))
        return make_triplet(self.name(index), source, edited, instruction, scores, text)


def embedded_image(value: object) -> Image.Image:
    """An image from the bytes in the table; paths are not followed.

    Raises:
        MRCError: no bytes.
    """
    if not isinstance(value, dict) or not value.get("bytes"):
        raise MRCError("the image is not in the table; embed its bytes")
    return value["bytes"]


class ImageFolder:
    """`metadata.jsonl` with the columns above, images as file names inside the folder (`original_image` or
    Hugging Face's `original_image_file_name`); see `Triplets`."""

    def __init__(self, folder: Path, columns: dict[str, str]) -> None:
        self.folder = folder.resolve()
        path = file_inside(folder, "metadata.jsonl")
        # lines end at \n alone: str.splitlines would also cut at U+2028, which JSON may hold
        lines = enumerate(path.read_bytes().split(b"\n"), start=1)
        self.rows = [(number, read_row(line)) for number, line in lines if line.strip()]
        if not any(isinstance(row, dict) for _, row in self.rows):
            raise MRCError(f"{path} is empty or holds no JSON objects in lines")
        names = set[str]().union(*(row for _, row in self.rows if isinstance(row, dict)))
        self.columns = choose_columns(names, path, columns)

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"{self.folder.name} line {self.rows[index][0]}"

    @named
    def __getitem__(self, index: int) -> Triplet:
        row = self.rows[index][1]
        if not isinstance(row, dict):
            raise MRCError(row)
        columns = self.columns
        source, edited = (file_inside(self.folder, row.get(column)) for column in (columns.source, columns.edited))
        instruction, scores, text = (row.get(name) for name in (columns.instruction, "reward_scores", "reward_text"))
        return make_triplet(self.name(index), source, edited, instruction, scores, text)


def read_row(line: bytes) -> dict | str:
    """A line of metadata.jsonl by column, or why it cannot be read."""
    try:
        # Hugging Face's image folders name the files of column X in X_file_name
        return {name.removesuffix("_file_name"): value for name, value in read_record(line).items()}
    except MRCError as error:
        return str(error)
