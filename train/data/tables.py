"""Hugging Face `datasets`: parquet, saved data sets, image folders with metadata.jsonl. Local only.

Columns as `columns.py` says; with rewards also reward_scores (three numbers) and reward_text.
"""

import re
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from ...core.columns import Columns, embedded_image
from ...core.errors import MRCError
from ...core.paths import file_inside
from .columns import REWARDS, choose_columns
from .triplet import Triplet, make_triplet, named, read_record

HELD_OUT = ("dev", "eval", "test", "val", "valid", "validation")  # names of splits that are not for training


class Table:
    """A parquet file, a folder of them, or a `save_to_disk` folder; see `Triplets`. Images are bytes or paths."""

    def __init__(self, path: Path, columns: dict[str, str], files: list[Path]) -> None:
        try:
            import datasets
        except ImportError:
            raise MRCError(f"{path} is a table, which needs datasets; pip install 'mrc-edit[train]'") from None
        self.path, self.folder = path, path if path.is_dir() else path.parent
        try:
            if (path / "dataset_info.json").is_file():
                rows = datasets.load_from_disk(str(path))
                for file in rows.cache_files:  # which state.json names
                    file_inside(path, file["filename"])
            else:
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
        image = partial(embedded_image, folder=self.folder)
        return row_triplet(self.name(index), self.rows[index], self.columns, image)


def row_triplet(name: str, row: dict, columns: Columns, image: Callable[[object], bytes | Path]) -> Triplet:
    """The triplet of a row; `image` makes an image of the value of a column."""
    source, edited = (image(row.get(column)) for column in (columns.source, columns.edited))
    instruction, scores, text = (row.get(key) for key in (columns.instruction, "reward_scores", "reward_text"))
    return make_triplet(name, source, edited, instruction, scores, text)


def training_files(folder: Path) -> list[Path]:
    """The parquet files of a folder: those of the split train, or all but those held out for tests.

    Warns of those that are left out.

    Raises:
        MRCError: all are held out.
    """
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        splits.setdefault(split_of(file.name), []).append(file)
    chosen = training_splits(splits.keys(), folder)
    return [file for split in chosen for file in splits[split]]


def split_of(name: str) -> str:
    """The split that a file's name begins with, as in train-00000-of-00051.parquet."""
    return re.split(r"[-._\d]", name, maxsplit=1)[0]


def training_splits(splits: Iterable[str], where: object) -> list[str]:
    """Of the names of splits `train`, or all but those held out for tests; warns of the others.

    Raises:
        MRCError: all are held out.
    """
    names = sorted(splits)
    chosen = [name for name in names if name == "train"] or [name for name in names if name not in HELD_OUT]
    if not chosen:
        raise MRCError(
            f"{where} has only {', '.join(names)}, which are for tests; give a file by its name to train on it"
        )
    if left_out := [name for name in names if name not in chosen]:
        warnings.warn(f"{where}: not used: the splits {', '.join(left_out)}", stacklevel=2)
    return chosen


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
        return row_triplet(self.name(index), row, self.columns, partial(file_inside, self.folder))


def read_row(line: bytes) -> dict | str:
    """A line of metadata.jsonl by column, or why it cannot be read."""
    try:
        # Hugging Face's image folders name the files of column X in X_file_name
        return {name.removesuffix("_file_name"): value for name, value in read_record(line).items()}
    except MRCError as error:
        return str(error)
