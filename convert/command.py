"""`mrc-convert`: one module a subcommand, imported when it is used."""

import importlib
import sys
from types import ModuleType

from ..core.console import command_parser
from ..core.errors import MRCError, run_command

SUBCOMMANDS = {
    "checkpoint": "write a checkpoint in any layout, pickled ones too, as a folder of safetensors",
    "smartedit": "write a released SmartEdit and the models that it needs as one folder",
}


def main(arguments: list[str] | None = None) -> None:
    sys.exit(run_command(lambda: convert(sys.argv[1:] if arguments is None else arguments)))


def convert(arguments: list[str]) -> None:
    parser = command_parser("mrc-convert", "Write weights of another layout as a folder.")
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
        raise MRCError(f"converting needs {error.name}; pip install 'mrc-edit[torch]'") from None
