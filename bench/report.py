"""What a benchmark prints and writes: one list of rows as Markdown, CSV and JSON."""

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from mrc_edit.core.files import write_file, write_json
from mrc_edit.core.tables import Table

Row = Mapping[str, str | float | None]


@dataclass(frozen=True)
class Column:
    """A column of a Markdown table.

    Attributes:
        show: a format of a row's values such as "{step_ms:.0f} ms".
        missing: the cell of a row where a value of the format is None.
        scale: factor of the numbers before they are shown.
    """

    heading: str
    show: str
    missing: str = "–"
    scale: float = 1

    def cell(self, row: Row) -> str:
        names = [name for _, name, _, _ in Formatter().parse(self.show) if name]
        values = {name: row[name] for name in names}
        if None in values.values():
            return self.missing
        scaled = {
            name: self.scale * value if isinstance(value, int | float) else value for name, value in values.items()
        }
        return self.show.format(**scaled)


def table(columns: Sequence[Column], rows: Sequence[Row], title: str = "", note: str = "") -> Table:
    """The rows as they are shown."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    return Table(title, [column.heading for column in columns], cells, note)


def plain_table(rows: Sequence[Row]) -> Table:
    """All values of the rows under their names, floating-point numbers with three digits."""
    shows = {name: f"{{{name}:.3g}}" if isinstance(value, float) else f"{{{name}}}" for name, value in rows[0].items()}
    return table([Column(name, show) for name, show in shows.items()], rows)


def csv_text(rows: Sequence[Row]) -> str:
    """All values of the rows, unrounded, under their names; an empty cell for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def add_output_options(parser: argparse.ArgumentParser, plot: str = "") -> None:
    """`--json` and `--csv`, and `--plot` with the help text `plot`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the full report here (default none)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table here, unrounded (default none)")
    if plot:
        parser.add_argument("--plot", type=Path, metavar="FILE", help=plot)


def write_report(args: argparse.Namespace, report: Mapping, rows: Sequence[Row]) -> None:
    """Write `report` to `--json` and the rows to `--csv`, where these are given."""
    if args.json:
        write_json(args.json, report)
    if args.csv:
        write_file(args.csv, csv_text(rows))
