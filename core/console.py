"""The console scripts. Their modules are imported inside `run_command`: Ctrl-C ends that, too, with one line."""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .. import __version__
from .errors import run_command

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


mrc = script("mrc_edit.cli.command")
mrc_edit = script("mrc_edit.engine.command")
mrc_export = script("mrc_edit.export.command")
mrc_train = script("mrc_edit.train.command")
mrc_rewards = script("mrc_edit.train.rewards.command")
mrc_convert = script("mrc_edit.convert.command")
mrc_serve = script("mrc_edit.serve.command")
