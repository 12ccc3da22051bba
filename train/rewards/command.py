"""`mrc-rewards`: one module a subcommand, imported when it is used."""

import importlib
import sys
from types import ModuleType

from ...core.console import command_parser
from ...core.errors import MRCError, run_command

SUBCOMMANDS = {
    "build": "judge training triplets and write RewardEdit JSON and parquet",
    "stats": "draw score histograms and the most frequent failure words",
    "sheet": "write a page for blind A/B rating by people, or read its answers",
}


def main(arguments: list[str] | None = None) -> None:
    sys.exit(run_command(lambda: rewards(sys.argv[1:] if arguments is None else arguments)))


def rewards(arguments: list[str]) -> None:
    parser = command_parser("mrc-rewards", "Build reward data with a judge, and look at it.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, purpose in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        if name in arguments[:1]:
            module = subcommand(name)
            module.add_arguments(subparser)
    args = parser.parse_args(arguments)
    module.run(args)


def subcommand(name: str) -> ModuleType:
    try:
        return importlib.import_module(f".{name}", __package__)
    except ImportError as error:
        raise MRCError(f"mrc-rewards {name} needs {error.name}; pip install 'mrc-edit[train,judge]'") from None
