"""Data sets that are not on this disk, read shard by shard: patterns of URLs, and names on the Hugging Face hub.

The order is a function of (seed, position), as for other data: the shards are shuffled in every epoch, and their rows,
one shard after the other, in windows of `WINDOW`. To begin in the middle, parquet shards are passed over by the number
of rows in their footers, tar shards by reading them.
"""

import itertools
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from ...core.braces import expand
from ...core.columns import SHARDS, Columns, embedded_image
from ...core.errors import MRCError, reason
from ...core.shards import find_part, tar_samples
from .batches import StepBatches, order
from .columns import REWARDS, choose_columns, parse_columns
from .shards import sample_triplet
from .tables import row_triplet, training_splits
from .triplet import Triplet, Triplets, named

WINDOW = 512  # rows that are shuffled with each other; their bytes are in memory
ROWS = 64  # of a parquet file, read at a time
SCHEMES = ("http", "https", "hf", "s3", "gs", "file")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

Row = tuple[str, Callable[[], Triplet]]  # its name for errors, and a function that reads it


class Rows:
    """A window of a stream; see `Reader`."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.rows[index][0]

    @named
    def __getitem__(self, index: int) -> Triplet:
        return self.rows[index][1]()


class Stream:
    """Shards by URL, all .parquet or all .tar.

    Args:
        columns: as for `open_triplets`.

    Raises:
        MRCError: other files, columns of no known data set, or a first shard that cannot be read.
    """

    def __init__(self, shards: list[str], columns: str | None) -> None:
        kinds = {Path(shard.partition("?")[0]).suffix for shard in shards}
        if kinds not in ({".parquet"}, {".tar"}):
            raise MRCError(f"{shards[0]} and its like end in {', '.join(sorted(kinds))}; only .parquet and .tar stream")
        given = parse_columns(columns)
        self.shards, self.parquet = shards, kinds == {".parquet"}
        self.counts: dict[str, int] = {}
        self.rewards: list[str] = []
        self.columns = replace(SHARDS, **given)
        if self.parquet:
            with reading(shards[0]):
                names = set(parquet_schema(shards[0]))
            self.columns, self.rewards = choose_columns(names, label(shards[0]), given), sorted(REWARDS & names)

    def rows(self, seed: int, first: int) -> Iterator[Row]:
        """The endless sequence of rows from number `first` on, epoch after epoch.

        Raises:
            MRCError: a shard cannot be fetched, or no shard has rows.
        """
        for epoch in itertools.count():
            before, found = first, False
            for shard in (self.shards[i] for i in order(len(self.shards), seed, epoch)):
                if first and first >= (count := self.count(shard)):
                    first -= count
                    continue
                for row in itertools.islice(self.read(shard), first, None):
                    found = True
                    yield row
                first = 0
            if not found and first == before:
                raise MRCError(f"{label(self.shards[0])} and the other shards have no rows; give other data")

    def read(self, shard: str) -> Iterator[Row]:
        """The rows of a shard; those that are damaged raise when they are read."""
        with reading(shard):
            if self.parquet:
                yield from parquet_rows(shard, self.columns, self.rewards)
            else:
                yield from tar_rows(shard, self.columns)

    def count(self, shard: str) -> int:
        """How many rows `read` gives."""
        if shard not in self.counts:
            with reading(shard):
                self.counts[shard] = parquet_count(shard) if self.parquet else sum(1 for _ in self.read(shard))
        return self.counts[shard]

    def head(self, count: int) -> Triplets:
        """The first rows, for pictures."""
        return Rows(list(itertools.islice(self.rows(0, 0), count)))


class StreamBatches(StepBatches):
    """As `StepBatches`, from one window of a stream at a time. It is made for rising steps; a lower one begins anew."""

    def __init__(
        self, stream: Stream, batch_size: int, size: int, seed: int, rank: int = 0, world_size: int = 1,
        augment: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(Rows(), batch_size, size, seed, rank, world_size, augment)
        self.stream, self.window = stream, -1
        self.rows: Iterator[Row] = iter(())

    def candidates(self, position: int) -> Iterator[int]:
        number, first = divmod(position, WINDOW)
        if number != self.window:
            if not 0 <= self.window < number:
                self.rows, self.window = self.stream.rows(self.seed, number * WINDOW), number - 1
            skip, self.window = (number - self.window - 1) * WINDOW, -1  # after an error the next call begins anew
            rows = list(itertools.islice(self.rows, skip, skip + WINDOW))
            self.triplets = Rows([rows[i] for i in np.random.default_rng([self.seed, 4, number]).permutation(WINDOW)])
            self.window = number
        return (index % WINDOW for index in range(first, first + WINDOW))


def open_stream(data: str, columns: str | None) -> Stream | None:
    """The data set behind a pattern of URLs or a name on the hub; None for data on this disk.

    Raises:
        MRCError: a URL of another kind, or what `Stream` raises.
    """
    scheme, found, _ = data.partition("://")
    if found:
        if scheme not in SCHEMES:
            raise MRCError(f"{data!r} begins with {scheme}://; give one of {', '.join(SCHEMES)}")
        return Stream(expand(data), columns)
    return Stream(hub_shards(data), columns) if is_hub_name(data) else None


def is_hub_name(data: str) -> bool:
    """Whether it can be a name on the hub, such as osunlp/MagicBrush, and no file has it."""
    return HUB_NAME.fullmatch(data) is not None and not Path(data).exists()


def hub_shards(name: str) -> list[str]:
    """URLs of the training files of a data set on the hub.

    Raises:
        MRCError: the hub cannot be reached or has no such set.
    """
    import datasets

    try:
        files = datasets.load_dataset_builder(name).config.data_files
    except Exception as error:  # datasets and huggingface_hub raise many types
        raise MRCError(f"{name} is no file here, and no data set that the hub gives ({reason(error)})") from None
    if not files:
        raise MRCError(f"{name} has no data files; download it and give the folder")
    return [str(file) for split in training_splits(map(str, files), name) for file in files[split]]


def label(url: str) -> str:
    """A URL without its query, which may hold a key."""
    return url.partition("?")[0]


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Make one MRCError of what goes wrong on the way to a shard: fetching it again may help, so training stops."""
    try:
        yield
    except MRCError:
        raise
    except Exception as error:  # of fsspec, aiohttp, httpx, botocore …
        raise MRCError(
            f"{label(url)} cannot be read ({reason(error)}); check it and the network, --resume latest goes on"
        ) from None


def damaged(name: str, why: object) -> Row:
    """A row that cannot be read."""

    def read() -> NoReturn:
        raise MRCError(f"{name} is damaged ({why}), what follows is lost; fetch it again")

    return f"{name}:(end)", read


def tar_rows(url: str, columns: Columns) -> Iterator[Row]:
    """The samples of a tar file; one that breaks off has a last row that says so."""
    import fsspec

    file = Path(label(url)).name
    with fsspec.open(url, "rb") as opened:
        try:
            for key, parts in tar_samples(opened):
                name = f"{file}:{key}"
                yield name, partial(sample_triplet, name, partial(find_part, parts), columns)
        except tarfile.TarError as error:
            yield damaged(file, error)


def parquet_rows(url: str, columns: Columns, rewards: list[str]) -> Iterator[Row]:
    """The rows of a parquet file, as many as its footer says: those behind a damaged place say so."""
    import datasets
    import pyarrow

    file, count, done = Path(label(url)).name, parquet_count(url), 0
    try:
        rows = datasets.load_dataset(
            "parquet", data_files={"train": [url]}, split="train", streaming=True, batch_size=ROWS,
            columns=columns.names() + rewards,
        )  # fmt: skip
        for row in rows.decode(False):
            name = f"{file} row {done}"
            done += 1
            yield name, partial(row_triplet, name, row, columns, embedded_image)
    except pyarrow.ArrowInvalid as error:
        yield from [damaged(file, reason(error))] * (count - done)


def parquet_schema(url: str) -> list[str]:
    """Names of the columns."""
    import fsspec
    from pyarrow import parquet

    with fsspec.open(url, "rb") as opened:
        return parquet.read_schema(opened).names


def parquet_count(url: str) -> int:
    """The number of rows in the footer; 1 where that is damaged, for the row that says so."""
    import fsspec
    import pyarrow
    from pyarrow import parquet

    with fsspec.open(url, "rb") as opened:
        try:
            return parquet.read_metadata(opened).num_rows
        except pyarrow.ArrowInvalid:
            return 1
