"""`mrc-rewards`: one module a subcommand, imported when it is used."""

import sys

from ...core.console import command_parser, run_subcommand
from ...core.errors import run_command

SUBCOMMANDS = {
    "build": "judge training triplets and write RewardEdit JSON and parquet",
    "stats": "draw score histograms and the most frequent failure words",
    "sheet": "write a page for blind A/B rating by people, or read its answers",
}


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    parser = command_parser("mrc-rewards", "Build reward data with a judge, and look at it.")
    sys.exit(run_command(lambda: run_subcommand(parser, SUBCOMMANDS, __package__, "train,judge", given)))
