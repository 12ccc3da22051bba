"""The items of a table: JSON, JSON lines, CSV or parquet. Images are files in its folder, or bytes in parquet."""

import csv
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ...core.columns import KNOWN, embedded_image
from ...core.errors import MRCError, reason
from ...core.files import read_value
from ...core.kinds import ENTRY
from ...core.paths import read_inside
from ..arguments import check_texts
from .item import Item, broken, key_problem

KEY = "key"
# Columns of image and instruction: our own names, and those of known data sets
PAIRS = tuple(
    dict.fromkeys(
        [("image", "instruction"), ("file_name", "instruction"), *((c.source, c.instruction) for c in KNOWN.values())]
    )
)
Row = dict[str, Any] | str  # values by column, or why it cannot be read
TOO_MANY = "it has more values than there are columns; put a text that has commas between double quotes"
REMEDY = 'give {"IMAGE": ["instruction", …]} or [{"image": …, "instruction": …}, …]'


def json_items(file: Path) -> list[Item]:
    """Of `{"IMAGE": ["1. Local: …", …]}`, the form of Real-Edit, or of a list of objects."""
    value = read_value(file, REMEDY)
    rows: list[Row]
    if isinstance(value, list):
        rows = [row if isinstance(row, dict) else f"it is {row!r:.60}, not an object" for row in value]
    elif isinstance(value, dict):
        rows = [
            {"image": image, "instruction": without_kind(text)}
            for image, texts in value.items()
            for text in (texts if isinstance(texts, list) else [texts])
        ]
    else:
        raise MRCError(f"{file} holds {value!r:.40}; {REMEDY}")
    return file_items(file, rows)


def without_kind(text: object) -> object:
    """`3. Add: a bench` → `a bench`."""
    found = ENTRY.fullmatch(text.strip()) if isinstance(text, str) else None
    return found[2].strip() if found else text


def jsonl_items(file: Path) -> list[Item]:
    """Of an object a line."""
    rows: list[Row] = []
    for line in file.read_bytes().split(b"\n"):  # str.splitlines would also cut at U+2028, which JSON may hold
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(row if isinstance(row, dict) else f"it is {row!r:.60}, not an object")
        except (ValueError, RecursionError) as error:
            rows.append(f"it is not JSON ({error})")
    return file_items(file, rows)


def csv_items(file: Path) -> list[Item]:
    """Of a table whose first line has the names of the columns."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        # A row's values beyond the last column come under None
        rows: list[Row] = [TOO_MANY if None in row else row for row in table]
    except (ValueError, csv.Error) as error:
        raise MRCError(f"{file} cannot be read as CSV in UTF-8 ({error}); mend it") from None
    return file_items(file, rows, table.fieldnames or ())


def file_items(file: Path, rows: Sequence[Row], header: Iterable[str] = ()) -> list[Item]:
    """The items of rows whose images are files in the table's folder; `header` names the columns beside the rows."""
    # Hugging Face's image folders name the files of column X in X_file_name
    named = [row if isinstance(row, str) else {n.removesuffix("_file_name"): v for n, v in row.items()} for row in rows]
    names = {name.removesuffix("_file_name") for name in header}
    columns = choose_columns(names.union(*(row for row in named if isinstance(row, dict))), file)
    counts = Counter(str(row.get(columns[0])) for row in named if isinstance(row, dict))
    seen: Counter[str] = Counter()
    items = []
    for number, row in enumerate(named, start=1):
        place = f"{file.name} row {number}"
        if isinstance(row, str):
            items.append(broken(place, place, row))
            continue
        name = str(row.get(columns[0]))
        seen[name] += 1
        key = stem_of(name) if counts[name] == 1 else f"{stem_of(name)}-{seen[name]}"
        items.append(row_item(place, row, columns, key, partial(read_inside, file.parent, row.get(columns[0])), name))
    return items


def stem_of(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if dot and "/" not in ending else name


def row_item(
    place: str, row: dict[str, Any], columns: tuple[str, str], key: str, read: Callable[[], bytes], name: str
) -> Item:
    """The item of a row; `key` where it names none."""
    given = row.get(KEY)
    key = key if given is None else str(given)
    instruction = row.get(columns[1])
    try:
        if not isinstance(instruction, str):
            raise MRCError(f"its {columns[1]} is {instruction!r:.40}; give a text")
        check_texts(instruction, columns[1])
        if problem := key_problem(key):
            raise MRCError(problem)
    except MRCError as error:
        return broken(place, name, error)
    return Item(key, name, instruction, read)


def choose_columns(names: set[str], file: Path) -> tuple[str, str]:
    """The columns of image and instruction. Warns of those that are not used.

    Raises:
        MRCError: none are known, or several.
    """
    found = [pair for pair in PAIRS if names >= {*pair}]
    if len(found) != 1:
        known = ", ".join(" + ".join(pair) for pair in PAIRS)
        raise MRCError(
            f"the columns of {file} ({', '.join(sorted(map(str, names))) or 'none'}) must have one of {known}"
        )
    if unused := sorted(names - {*found[0], KEY}):
        warnings.warn(f"{file}: not used: {', '.join(unused)}", stacklevel=2)
    return found[0]


def parquet_items(file: Path) -> list[Item]:
    """Of a parquet file, whose images are bytes, or paths in its folder. They are read with their row group."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise MRCError(f"{file} needs pyarrow: pip install pyarrow") from None
    try:
        opened = parquet.ParquetFile(file)
        names = set(opened.schema_arrow.names)
        columns = choose_columns(names, file)
        wanted = [columns[1], *({KEY} & names)]
        groups = [opened.read_row_group(i, columns=wanted).to_pylist() for i in range(opened.num_row_groups)]
    except MRCError:
        raise
    except Exception as error:  # pyarrow raises many types for damaged files
        raise MRCError(f"{file} cannot be read as a table ({reason(error)}); fetch it again") from None
    items: list[Item] = []
    for group, rows in enumerate(groups):
        for index, row in enumerate(rows):
            place = f"{file.name} row {len(items)}"
            read = partial(parquet_image, file, group, columns[0], index)
            items.append(row_item(place, row, columns, f"{file.stem}-{len(items):07d}", read, place))
    return items


def parquet_image(file: Path, group: int, column: str, index: int) -> bytes:
    """The bytes of an image.

    Raises:
        MRCError: the row cannot be read or has no image.
    """
    try:
        value = image_column(file, group, column)[index].as_py()
    except Exception as error:
        raise MRCError(f"{file} cannot be read ({reason(error)}); fetch it again") from None
    if not isinstance(value, dict):
        value = {"bytes": value} if isinstance(value, bytes) else {"path": value}
    image = embedded_image(value, file.parent)
    return image if isinstance(image, bytes) else read_inside(file.parent, str(image))


@lru_cache(maxsize=1)
def image_column(file: Path, group: int, column: str) -> Any:
    """The images of one row group."""
    from pyarrow import parquet

    return parquet.ParquetFile(file).read_row_group(group, columns=[column])[column]


TABLES: dict[str, Callable[[Path], Iterable[Item]]] = {
    ".json": json_items, ".jsonl": jsonl_items, ".csv": csv_items, ".parquet": parquet_items,
}  # fmt: skip
