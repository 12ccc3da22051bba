"""`mrc-convert`: one module a subcommand, imported when it is used."""

import sys

from ..core.console import command_parser, run_subcommand
from ..core.errors import run_command

SUBCOMMANDS = {
    "checkpoint": "write a checkpoint in any layout, pickled ones too, as a folder of safetensors",
    "smartedit": "write a released SmartEdit and the models that it needs as one folder",
}


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    parser = command_parser("mrc-convert", "Write weights of another layout as a folder.")
    sys.exit(run_command(lambda: run_subcommand(parser, SUBCOMMANDS, __package__, "torch", given)))
