"""Options that several benchmarks share."""

import argparse

from mrc_edit.core import console
from mrc_edit.core.errors import MRCError


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser described by the first line of a module's docstring."""
    return console.command_parser(None, (description or "").splitlines()[0])


def add_sampler_options(
    parser: argparse.ArgumentParser,
    steps: int,
    scheduler: str = "euler",
    guidance: float | str = 1.0,
    image_guidance: float = 1.0,
) -> None:
    """`--steps`, `--scheduler`, `--guidance` and `--image-guidance` with these defaults.

    A text as default of `guidance` stands for several values with commas.
    """
    parser.add_argument("--steps", type=int, default=steps, help="denoising steps of an edit (default %(default)s)")
    parser.add_argument("--scheduler", default=scheduler, help="the sampler (default %(default)s)")
    many = isinstance(guidance, str)
    parser.add_argument(
        "--guidance",
        type=str if many else float,
        default=guidance,
        help=f"weight{'s' if many else ''} of the instruction, from 1 (default %(default)s)",
    )
    parser.add_argument(
        "--image-guidance",
        type=float,
        default=image_guidance,
        help="weight of the source image, from 1 (default %(default)s)",
    )


def sampler_settings(args: argparse.Namespace) -> dict[str, int | float | str]:
    """The arguments of `Engine.edit` that `add_sampler_options` reads."""
    return {
        "num_inference_steps": args.steps,
        "scheduler": args.scheduler,
        "guidance_scale": args.guidance,
        "image_guidance_scale": args.image_guidance,
    }


def require_at_least(args: argparse.Namespace, **least: int) -> None:
    """Check options by name.

    Raises:
        MRCError: one is less than given here.
    """
    for name, number in least.items():
        if (value := getattr(args, name)) < number:
            raise MRCError(f"--{name.replace('_', '-')} is {value}; give a number from {number} up")


def whole_numbers(text: str, option: str) -> list[int]:
    """Numbers from 1 up, separated by commas.

    Raises:
        MRCError: something else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise MRCError(f"{option} is {text!r}; give whole numbers from 1 up, separated by commas")
    return [int(part) for part in parts]
