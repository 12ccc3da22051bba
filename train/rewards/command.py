"""`mrc-rewards`: one module a subcommand, imported when it is used."""

import importlib
import sys

from ...core.console import command_parser
from ...core.errors import run_command

SUBCOMMANDS = {
    "build": "judge training triplets and write RewardEdit JSON and parquet",
    "stats": "draw score histograms and the most frequent failure words",
    "sheet": "write a page for blind A/B rating by people, or read its answers",
}


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = command_parser("mrc-rewards", "Build reward data with a judge, and look at it.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, purpose in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        if name in arguments[:1]:
            module = importlib.import_module(f".{name}", __package__)
            module.add_arguments(subparser)
    args = parser.parse_args(arguments)
    sys.exit(run_command(lambda: module.run(args)))
