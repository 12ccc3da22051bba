"""`mrc-edit MODEL --batch IN OUT`: its flags."""

import argparse
import sys
from collections.abc import Sequence

from ...core.console import command_parser
from ...core.errors import run_command
from ..finishing import add_finishing_flags
from ..flags import add_edit_flags, add_runtime_flags
from ..outputs import FORMATS
from .inputs import IN_FOLDERS
from .job import FAILED, run
from .place import ERRORS


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(
        "mrc-edit",
        "Edit a folder, a table or tar shards. The same command again goes on where a run has ended.",
        usage="%(prog)s MODEL --batch IN OUT [flags]",
        epilog=f"A folder has {', '.join(IN_FOLDERS)}, *.parquet or *.tar. Status {FAILED}: OUT/{ERRORS} lists what "
        "could not be edited; the rest is edited.",
    )
    parser.add_argument("model", help="as for mrc-edit")
    parser.add_argument(
        "--batch",
        nargs=2,
        required=True,
        metavar=("IN", "OUT"),
        help="what to edit: folder, table or tar files such as a-{00..09}.tar; where the edits go: folder, or as many "
        "tar files (required)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=FORMATS, default="png", help="format of the edits (default: png)")
    output.add_argument(
        "--quality", type=int, metavar="Q", help="quality of JPEG and WebP, 1 to 100 (default: 75 and 80)"
    )
    output.add_argument(
        "--json", action="store_true", help="print a JSON line for each edit, and the counts at the end (default: no)"
    )
    add_finishing_flags(output)
    cluster = parser.add_argument_group("many machines")
    cluster.add_argument(
        "--ray",
        action="store_true",
        help="edit as a Ray Data job, on the cluster at RAY_ADDRESS or on this machine (default: no)",
    )
    cluster.add_argument(
        "--workers", type=int, metavar="N", help="models open at once with --ray (default: one for each GPU, or one)"
    )
    add_edit_flags(parser)
    add_runtime_flags(parser)
    parser.set_defaults(instruction="")  # each item has its own
    return parser


def main(words: Sequence[str]) -> None:
    """Run with the words of the command line."""
    explain = {"-h", "--help"} & {*words}  # --batch would take it for a folder that is missing
    args = arguments().parse_args(["--help"] if explain else words)
    sys.exit(run_command(lambda: run(args)))
