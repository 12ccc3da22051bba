"""The console scripts. Their modules are imported inside `run_command`: Ctrl-C ends that, too, with one line."""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .. import __version__
from .errors import MRCError, run_command

DISTRIBUTION = "mrc-edit"
VERSION = f"{DISTRIBUTION} {__version__}"


def script(module: str) -> Callable[[], None]:
    """A console script that runs `main` of a module."""
    return lambda: sys.exit(run_command(lambda: import_module(module).main()))


def command_parser(name: str | None, description: str, **options: Any) -> argparse.ArgumentParser:
    """The parser of a command, with `--version`; flags are not guessed from their beginnings.

    Args:
        name: the command in its messages, unless `mrc` runs it as a subcommand; None for the name of the program.
        options: other arguments of `ArgumentParser`.
    """
    if sys.argv[0].startswith("mrc "):
        name = sys.argv[0]
    parser = argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False, **options)
    parser.add_argument("--version", action="version", version=VERSION, help="print the version and exit")
    return parser


def run_subcommand(
    parser: argparse.ArgumentParser, purposes: dict[str, str], package: str, extra: str, arguments: list[str]
) -> None:
    """Run a subcommand: a module of `package` with `add_arguments` and `run`, imported when it is used.

    Args:
        purposes: what each subcommand does, by its name.
        extra: what brings the packages that it may lack.

    Raises:
        MRCError: a package is missing, or what the subcommand raises.
    """
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, purpose in purposes.items():
        subparser = subparsers.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        if name in arguments[:1]:
            try:
                module = import_module(f".{name}", package)
            except ImportError as error:
                raise MRCError(
                    f"{parser.prog} {name} needs {error.name}; pip install '{DISTRIBUTION}[{extra}]'"
                ) from None
            module.add_arguments(subparser)
    args = parser.parse_args(arguments)
    module.run(args)


mrc = script("mrc_edit.cli.command")
mrc_edit = script("mrc_edit.engine.command")
mrc_export = script("mrc_edit.export.command")
mrc_train = script("mrc_edit.train.command")
mrc_rewards = script("mrc_edit.train.rewards.command")
mrc_convert = script("mrc_edit.convert.command")
mrc_serve = script("mrc_edit.serve.command")
