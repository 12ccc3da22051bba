"""`mrc-train`: the command line over `TrainConfig`, one flag a field."""

import argparse
import sys
import types
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..core.errors import MRCError, run_command
from .config import PRESETS, TrainConfig, preset


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mrc-train",
        description="Train an MRC checkpoint (stage 2) or the InstructPix2Pix editor under it (stage 1). "
        "Starts under `accelerate launch` or `torchrun` on more than one device.",
        epilog=f"presets: {', '.join(PRESETS)}; flags override them",
    )
    parser.add_argument(
        "init", nargs="?", help="checkpoint folder to start from; leave it out to make `mini` from nothing"
    )
    parser.add_argument("--preset", help=f"settings to start from: {', '.join(PRESETS)}")
    parser.add_argument("--resume", help="'latest' or the step of a state in OUT")
    hints = get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        if field.name == "init":
            continue
        hint = hints[field.name]
        kind = next(a for a in get_args(hint) if a is not type(None)) if isinstance(hint, types.UnionType) else hint
        flag = "--" + field.name.replace("_", "-")
        shown = "" if field.default is MISSING or field.default is None else f"default {field.default}"
        extra: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(flag, default=argparse.SUPPRESS, help=shown, **extra)
    return parser


def main(arguments: list[str] | None = None) -> None:
    given = vars(parser().parse_args(arguments))
    name, resume = given.pop("preset"), given.pop("resume")

    def run() -> None:
        if given["init"] is None and name == "mini":
            print(make_mini(given))
            return
        settings = (preset(name) if name else {}) | given
        missing = [field for field in ("data", "out") if field not in settings]
        if settings["init"] is None:
            raise MRCError("give the checkpoint folder to start from; only --preset mini can start from nothing")
        if missing:
            raise MRCError(f"give {', '.join('--' + field for field in missing)}; see mrc-train --help")
        config = TrainConfig(**settings)
        from .loop import train  # torch and accelerate only after the settings are right

        print(train(config, resume))

    sys.exit(run_command(run))


def make_mini(given: dict) -> Path:
    """The whole recipe of the shipped checkpoint."""
    if "out" not in given:
        raise MRCError("give --out; see mrc-train --help")
    if fixed := sorted(given.keys() - {"init", "out", "photographs", "seed"}):
        raise MRCError(
            f"without a checkpoint to start from, --preset mini sets {', '.join(fixed)} itself; "
            "give a checkpoint, or only --out, --photographs and --seed"
        )
    from .miniature.recipe import reproduce

    return reproduce(Path(given["out"]), given.get("photographs"), given.get("seed", 0))
