"""`mrc-train`: the command line over `TrainConfig`, one flag a field."""

import argparse
import os
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import get_args, get_type_hints

from ..core.console import command_parser
from ..core.errors import MRCError, reason, run_command
from .config import PRESETS, TrainConfig, preset


def parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "mrc-train",
        "Train an MRC checkpoint (stage 2) or the InstructPix2Pix editor under it (stage 1), or distil one. "
        "Starts under `accelerate launch` or `torchrun` on more than one device.",
        epilog=f"presets: {', '.join(PRESETS)}; flags override them",
    )
    parser.add_argument(
        "init",
        nargs="?",
        help="checkpoint to start from: folder, or OWNER/NAME of the hub; leave it out to make `mini` from nothing",
    )
    parser.add_argument("--preset", help=f"settings to start from: {', '.join(PRESETS)} (default: none)")
    parser.add_argument(
        "--resume", help="go on with a saved state of OUT: 'latest' or the number of its step (default: none)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew in an OUT that holds a run, and replace that (default: no)",
    )
    hints = get_type_hints(TrainConfig, include_extras=True)
    for field in fields(TrainConfig):
        if field.name != "init":
            hint, text, *_ = get_args(hints[field.name])
            add_flag(parser, field, hint, text)
    return parser


def add_flag(parser: argparse.ArgumentParser, field: Field, hint: type | types.UnionType, text: str) -> None:
    """The flag of a field: its type or type | None, its help, and its default as a part of the help."""
    flag = "--" + field.name.replace("_", "-")
    help_text = f"{text} ({default_text(field.default)})"
    kinds = [part for part in (*get_args(hint), hint) if part is not types.NoneType]
    kind = number_or_word if kinds[:2] == [int, str] else kinds[0]
    if kind is bool:
        parser.add_argument(flag, default=argparse.SUPPRESS, help=help_text, action=argparse.BooleanOptionalAction)
    else:
        parser.add_argument(flag, default=argparse.SUPPRESS, help=help_text, type=kind)


def number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def default_text(default: object) -> str:
    if default is MISSING:
        return "required, unless a preset sets it"
    if isinstance(default, bool):
        return f"default: {'yes' if default else 'no'}"
    return f"default: {'none' if default is None else default}"


def main(arguments: list[str] | None = None) -> None:
    flags = vars(parser().parse_args(arguments))
    name, resume, overwrite = flags.pop("preset"), flags.pop("resume"), flags.pop("overwrite")

    def run() -> None:
        if flags["init"] is None and name == "mini":
            if resume or overwrite:
                raise MRCError("mini made from nothing always goes on; leave out --resume and --overwrite")
            print(make_mini(flags))
            return
        settings = (preset(name) if name else {}) | flags
        missing = [field for field in ("data", "out") if field not in settings]
        if settings["init"] is None:
            raise MRCError("give the checkpoint folder to start from; only --preset mini can start from nothing")
        if missing:
            raise MRCError(f"give {', '.join('--' + field for field in missing)}; see mrc-train --help")
        config = TrainConfig(**settings)
        with needed():
            from .loop import train  # torch and accelerate only after the settings are right
        try:
            checkpoint = train(config, resume, overwrite)
            if os.environ.get("RANK", "0") == "0":
                print(checkpoint)
        except RuntimeError as error:
            if not re.search("out of memory|can't allocate memory", str(error)):  # PyTorch's words, on GPUs and CPUs
                raise
            raise MRCError(
                f"there is not enough memory to train ({reason(error)}); give more --accumulation, "
                "--gradient-checkpointing or a lower --resolution"
            ) from None

    sys.exit(run_command(run))


def make_mini(flags: dict) -> Path:
    """The whole recipe of the shipped checkpoint.

    Raises:
        MRCError: no --out, or a setting that the recipe sets.
    """
    if "out" not in flags:
        raise MRCError("give --out; see mrc-train --help")
    if fixed := sorted(flags.keys() - {"init", "out", "photographs", "seed"}):
        raise MRCError(
            f"without a checkpoint to start from, --preset mini sets {', '.join(fixed)} itself; "
            "give a checkpoint, or only --out, --photographs and --seed"
        )
    TrainConfig(**preset("mini") | flags | {"init": ""})  # refuses values that cannot be
    with needed():
        from .miniature.recipe import reproduce

    return reproduce(Path(flags["out"]), flags.get("photographs"), flags.get("seed", 0))


@contextmanager
def needed() -> Iterator[None]:
    """Name the package that an import lacks."""
    try:
        yield
    except ImportError as error:
        raise MRCError(f"training needs {error.name}; pip install 'mrc-edit[train,cpu]'") from None
