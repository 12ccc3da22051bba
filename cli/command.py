"""`mrc COMMAND …`: the commands of this package under one name. A command is imported when it is run."""

import argparse
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module

from ..core import console
from ..core.errors import MRCError

# What each does, and the extra that brings the packages it may lack
COMMANDS = {
    "edit": ("edit images by an instruction", "cpu"),
    "export": ("make ONNX graphs and TensorRT engines of a checkpoint", "export,cpu"),
    "train": ("train a checkpoint", "train,cpu"),
    "rewards": ("build reward data with a judge, and look at it", "train,judge"),
    "convert": ("make a checkpoint folder of other files", "torch"),
    "serve": ("serve edits over HTTP", "serve,cpu"),
    "bench": ("measure speed and fidelity", "bench"),
    "doctor": ("say what works here, and what installs the rest", "cpu"),
}
OWN = ("bench", "doctor")  # without a console script of their own
BENCHMARKS = {
    "curve": "quality against seconds, of a teacher and its student",
    "fleet": "what many replicas do under load, simulated, and what gives first",
    "flood": "what is left of a server under a flood of requests",
    "latency": "whole edits of several backends, and their fidelity",
    "loading": "how long checkpoints take to load, and their memory",
    "operators": "the kernels against eager PyTorch",
    "quality": "how well a model edits",
    "reward_blocks": "what rewards after every block cost",
    "reward_guidance": "what reward guidance does",
    "savings": "what each exact saving gives",
    "scaling": "a step by size of the picture and of the batch",
    "serving": "what the server adds to an edit",
    "tiers": "what the lossy tiers and precisions cost",
    "training": "steps of training a second, and memory",
    "training_memory": "memory and operations of full-size training, counted",
    "trainings": "what several trainings of one recipe have in common",
}


def available() -> dict[str, str]:
    """The commands that this version has, and what they do."""
    return {name: text for name, (text, _) in COMMANDS.items() if name in OWN or hasattr(console, f"mrc_{name}")}


def arguments(name: str, description: str, choices: dict[str, str]) -> argparse.ArgumentParser:
    """The parser of a command whose first argument chooses what runs, and takes all others."""
    listed = "\n".join(f"  {choice:16}{text}" for choice, text in choices.items())
    parser = console.command_parser(
        name,
        description,
        usage=f"{name} COMMAND … (`{name} COMMAND --help` explains one)",
        epilog=f"commands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=list(choices), metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="its own arguments")
    return parser


def run(name: str, rest: Sequence[str]) -> None:
    """Run a command with its arguments, as if it had been called by its own name.

    Raises:
        MRCError: a package that it needs is not installed.
    """
    sys.argv = [f"mrc {name}", *rest]
    try:
        if name == "bench":
            bench(rest)
        elif name == "doctor":
            import_module("mrc_edit.cli.doctor").main()
        else:
            getattr(console, f"mrc_{name}")()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "mrc_edit":
            raise
        extra = COMMANDS[name][1]
        raise MRCError(f"mrc {name} needs {error.name}; pip install 'mrc-edit[{extra}]'") from None


def bench(rest: Sequence[str]) -> None:
    """Run one benchmark, as `python -m mrc_edit.bench.NAME` does."""
    args = arguments("mrc bench", "Measure speed and fidelity.", BENCHMARKS).parse_args(rest)
    sys.argv = [f"mrc bench {args.command}", *args.arguments]
    runpy.run_module(f"mrc_edit.bench.{args.command}", run_name="__main__", alter_sys=False)


def main() -> None:
    args = arguments("mrc", "Multi-Reward-Condition image editing.", available()).parse_args()
    run(args.command, args.arguments)
