"""What several trainings of one recipe have in common: mean leads and drops, with their intervals over trainings.

    python -m mrc_edit.bench.trainings quality-1.json quality-2.json quality-3.json

Each file is what `mrc_edit.bench.quality --world miniature --baseline … --json` wrote of one training.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from mrc_edit.bench.miniature import REQUESTS
from mrc_edit.bench.options import command_parser
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.significance import interval_of_mean
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.core.files import read_json
from mrc_edit.core.reward import PERSPECTIVES

ASKED = "MRC 5,5,5"
LOW = {"MRC 1,5,5": "following", "MRC 5,1,5": "preserving", "MRC 5,5,1": "quality"}
COLUMNS = [
    Column("points of the pass rate", "{name}"),
    *(Column(p, f"{{{p}:+.1f}} ({{{p}_low:.1f}} to {{{p}_high:.1f}})") for p in PERSPECTIVES),
    Column("lowers its own most", "{own}"),
]


def pass_rates(path: Path) -> dict[str, np.ndarray]:
    """Pass rates in per cent `[3]` by row of a report.

    Raises:
        MRCError: another file, or one without a baseline.
    """
    remedy = "give what bench.quality --world miniature --baseline … --json wrote"
    report = read_json(path, remedy)
    try:
        rows = report["rows"]
        return {
            name: np.array([rows[name][p]["pass"] for p in PERSPECTIVES], float) for name in ("baseline", *REQUESTS)
        }
    except (LookupError, TypeError, ValueError) as error:
        raise MRCError(f"{path} has no such rates ({error!r}); {remedy}") from None


def compare(trainings: list[dict[str, np.ndarray]]) -> list[Row]:
    """The lead of 5,5,5 over the baseline, and what each other request changes of 5,5,5: mean over the trainings and
    95 % interval by perspective; for a single low score in how many trainings it lowers its own perspective most."""
    pairs = [(f"{ASKED} over the baseline", ASKED, "baseline")]
    pairs += [(f"{name} against 5,5,5", name, ASKED) for name in REQUESTS if name != ASKED]
    rows: list[Row] = []
    for label, first, second in pairs:
        points = np.stack([rates[first] - rates[second] for rates in trainings])
        row: dict[str, str | float | None] = {"name": label, "own": "–"}
        for i, perspective in enumerate(PERSPECTIVES):
            row[perspective] = float(points[:, i].mean())
            row[f"{perspective}_low"], row[f"{perspective}_high"] = interval_of_mean(points[:, i].tolist())
        if first in LOW:
            own = PERSPECTIVES.index(LOW[first])
            row["own"] = f"{int((points.argmin(1) == own).sum())} of {len(trainings)}"
        rows.append(row)
    return rows


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("reports", type=Path, nargs="+", help="one JSON report a training, two or more")
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    if len(args.reports) < 2:
        raise MRCError("an interval over trainings needs two or more reports; give more")
    rows = compare([pass_rates(path) for path in args.reports])
    print(table(COLUMNS, rows).markdown())
    write_report(args, {"reports": [str(path) for path in args.reports], "rows": rows}, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
