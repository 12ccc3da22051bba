"""`mrc-edit`: edit one image from the command line."""

import argparse
import json
import os
import sys
from pathlib import Path

from PIL import Image

from ..core.errors import MRCError, run_command
from .backends import BACKENDS, state_of
from .engine import Engine
from .sampling import SAMPLERS
from .schedule import TIERS

PRECISIONS = ("float32", "bfloat16", "float16", "int8")


def arguments() -> argparse.ArgumentParser:
    states = "\n".join(f"  {name:13}{state_of(name)}" for name in BACKENDS)
    parser = argparse.ArgumentParser(
        prog="mrc-edit",
        description="Edit an image by an instruction.",
        epilog=f"backends:\n{states}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="checkpoint or export folder, or mini: the small one inside")
    parser.add_argument("image", type=Path, help="image to edit")
    parser.add_argument("instruction", help="what to change, such as 'make it night'")
    parser.add_argument("-o", "--output", type=Path, required=True, help="image file to write, format by its ending")
    parser.add_argument("--reward", default="5,5,5", metavar="F,P,Q", help="following, preserving, quality, 0 to 5")
    parser.add_argument("--reward-text", metavar="TEXT", help="what may go wrong; none by default")
    parser.add_argument(
        "--reward-guidance", metavar="F,P,Q", help="scores to steer away from; by default those of --reward"
    )
    parser.add_argument("--reward-guidance-text", metavar="TEXT", help="faults to steer away from")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=7.5, help="weight of the instruction, from 1")
    parser.add_argument("--image-guidance", type=float, default=1.5, help="weight of the source image, from 1")
    parser.add_argument(
        "--scheduler",
        choices=list(SAMPLERS),
        default="euler_ancestral",
        help="sampler of the steps (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same edit")
    parser.add_argument(
        "--resolution", type=int, help="pixels of the longer side (default: the model's own); 0 keeps the size"
    )
    parser.add_argument("--backend", default="auto", metavar="NAME", help="one of those below (default: auto)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the arithmetic (default: the backend's choice)")
    parser.add_argument(
        "--tier", choices=list(TIERS), default="exact", help="fast and turbo compute less at a price (docs/runtime.md)"
    )
    parser.add_argument("--provider", metavar="NAME", help="ONNX Runtime's execution provider")
    parser.add_argument("--json", action="store_true", help="print seed, size and timings as JSON")
    return parser


def edit(args: argparse.Namespace) -> None:
    if Image.registered_extensions().get(args.output.suffix.lower()) not in Image.SAVE:
        raise MRCError(f"{args.output} has no ending of an image format to write; use .png, .jpg or .webp")
    asked = scores("--reward", args.reward)
    steered_from = None if args.reward_guidance is None else scores("--reward-guidance", args.reward_guidance)
    options = {"provider": args.provider} if args.provider else {}
    engine = Engine.from_pretrained(args.model, args.backend, precision=args.precision, tier=args.tier, **options)
    result = engine.edit(
        args.image,
        args.instruction,
        reward_scores=asked,
        reward_text=args.reward_text,
        reward_guidance=steered_from,
        reward_guidance_text=args.reward_guidance_text,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        image_guidance_scale=args.image_guidance,
        scheduler=args.scheduler,
        seed=args.seed,
        resolution=args.resolution,
    )
    save(result.images[0], args.output)
    total = sum(result.timings.values())
    if args.json:
        size = list(result.images[0].size)
        print(json.dumps({"output": str(args.output), "seed": result.seed, "size": size, "seconds": result.timings}))
    else:
        print(f"{args.output}: seed {result.seed}, {total:.1f} s")


def scores(option: str, value: str) -> list[float]:
    try:
        return [float(score) for score in value.split(",")]
    except ValueError:
        raise MRCError(f"{option} is {value!r}; give three numbers such as 5,5,5") from None


def save(image: Image.Image, path: Path) -> None:
    """Write an image whole or not at all."""
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        image.save(partial)
        partial.replace(path)
    except (OSError, ValueError) as error:
        raise MRCError(f"{path} cannot be written ({error}); choose another place") from None
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    args = arguments().parse_args()
    sys.exit(run_command(lambda: edit(args)))


if __name__ == "__main__":
    main()
