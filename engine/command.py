"""`mrc-edit`: edit one image from the command line."""

import argparse
import io
import json
import os
import sys
from pathlib import Path

from PIL import Image

from ..core.adapters import add_adapter_flags, parse_embeddings, parse_loras
from ..core.console import command_parser
from ..core.defaults import Defaults, read_defaults
from ..core.errors import MRCError, run_command
from ..core.files import write_file
from ..core.layout import add_layout_options, layout_options
from ..core.precision import PRECISIONS
from .backends import BACKENDS, state_of
from .engine import Engine
from .framing import FITS, make_frame
from .images import load_image
from .request import EditOptions, EditRequest, check_arguments
from .sampling import SAMPLERS
from .shipped import MODELS
from .tiers import TIERS


def arguments() -> argparse.ArgumentParser:
    states = "\n".join(f"  {name:13}{state_of(name)}" for name in BACKENDS)
    released, mini = (describe(defaults) for defaults in (Defaults(), read_defaults(MODELS["mini"] / "checkpoint")))
    parser = command_parser(
        "mrc-edit",
        "Edit an image by an instruction.",
        epilog=f"the model's own defaults:\n  as released  {released}\n  mini         {mini}\n\nbackends:\n{states}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="checkpoint, export folder, mini: the small one inside, or OWNER/NAME of the hub")
    parser.add_argument("image", type=Path, help="image file to edit")
    parser.add_argument("instruction", help="what to change")
    parser.add_argument(
        "-o", "--output", type=Path, help="image file to write, format by its ending (default: IMAGE-edited.png)"
    )
    reward = parser.add_argument_group("rewards")
    reward.add_argument(
        "--reward", default="5,5,5", metavar="F,P,Q", help="following, preserving, quality, 0 to 5 (default: 5,5,5)"
    )
    reward.add_argument("--reward-text", metavar="TEXT", help="what may go wrong (default: nothing)")
    reward.add_argument("--reward-guidance", metavar="F,P,Q", help="scores to steer away from (default: --reward)")
    reward.add_argument(
        "--reward-guidance-text", metavar="TEXT", help="faults to steer away from (default: --reward-text)"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--steps", type=int, help="denoising steps, 1 to 1000 (default: the model's own)")
    sampling.add_argument(
        "--guidance",
        type=float,
        help="weight of the instruction, from 1, which is no guidance (default: the model's own)",
    )
    sampling.add_argument(
        "--image-guidance", type=float, help="weight of the source image, from 1 (default: the model's own)"
    )
    sampling.add_argument("--scheduler", choices=list(SAMPLERS), help="sampling algorithm (default: the model's own)")
    sampling.add_argument("--seed", type=int, help="the same seed gives the same edit (default: a random one)")
    sampling.add_argument(
        "--resolution", type=int, help="pixels of the longer side (default: the model's own); 0 keeps the size"
    )
    sampling.add_argument(
        "--fit",
        choices=FITS,
        default="crop",
        help="crop the image, pad or stretch it to that size, or to a square (default: crop)",
    )
    sampling.add_argument(
        "--keep-size", action="store_true", help="scale the edit back to the image's size (default: no)"
    )
    runtime = parser.add_argument_group("runtime")
    runtime.add_argument("--backend", default="auto", metavar="NAME", help="one of those below (default: auto)")
    runtime.add_argument(
        "--precision", choices=(*PRECISIONS, "int8"), help="of the arithmetic (default: the backend's choice)"
    )
    runtime.add_argument(
        "--tier",
        choices=list(TIERS),
        default="exact",
        help="fast and turbo compute less at a price, docs/runtime.md (default: exact)",
    )
    runtime.add_argument(
        "--provider",
        metavar="NAME",
        help="ONNX Runtime's execution provider (default: CUDA where it has that, else the CPU)",
    )
    add_layout_options(runtime)
    add_adapter_flags(runtime)
    runtime.add_argument("--json", action="store_true", help="print seed, size and timings as JSON (default: no)")
    return parser


def describe(defaults: Defaults) -> str:
    scheduler = defaults.scheduler or "the sampler of its scheduler_config.json"
    guidance = f"guidance {defaults.guidance_scale:g}, image guidance {defaults.image_guidance_scale:g}"
    return f"{defaults.num_inference_steps} steps, {guidance}, {scheduler}"


def edit(args: argparse.Namespace) -> None:
    output = args.output or unused(args.image.with_name(f"{args.image.stem}-edited.png"))
    check_output(output)
    steered_from = None if args.reward_guidance is None else scores("--reward-guidance", args.reward_guidance)
    options: EditOptions = {
        "reward_scores": scores("--reward", args.reward),
        "reward_text": args.reward_text,
        "reward_guidance": steered_from,
        "reward_guidance_text": args.reward_guidance_text,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "image_guidance_scale": args.image_guidance,
        "scheduler": args.scheduler,
        "seed": args.seed,
        "resolution": args.resolution,
        "fit": args.fit,
        "keep_size": args.keep_size,
    }
    lora, embeddings = parse_loras(args.lora), parse_embeddings(args.embedding)
    picture = load_image(args.image)
    check_arguments(EditRequest(picture, args.instruction, **options))  # before the model, which takes long to load
    if args.resolution == 0:
        make_frame(*picture.size, 0, 1)  # refuses what is too large for any model
    given = layout_options(args) | ({"provider": args.provider} if args.provider else {})
    engine = Engine.from_pretrained(
        args.model,
        args.backend,
        precision=args.precision,
        tier=args.tier,
        lora=lora,
        embeddings=embeddings,
        **given,
    )
    result = engine.edit(picture, args.instruction, **options)
    image = result.images[0]
    save(image, output)
    if args.json:
        size = list(image.size)
        print(json.dumps({"output": str(output), "seed": result.seed, "size": size, "seconds": result.timings}))
    else:
        print(f"{output}: seed {result.seed}, {sum(result.timings.values()):.1f} s")


def check_output(path: Path) -> None:
    """Refuse a file that could not be written after the edit."""
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except (KeyError, OSError, ValueError):
        raise MRCError(f"{path} has no ending of an image format to write; use .png, .jpg or .webp") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise MRCError(f"{path} cannot be written; name a file in a folder that exists and that you may write to")


def unused(path: Path) -> Path:
    if path.exists():
        raise MRCError(f"{path} exists; name the file to write with -o")
    return path


def scores(option: str, value: str) -> list[float]:
    try:
        return [float(score) for score in value.split(",")]
    except ValueError:
        raise MRCError(f"{option} is {value!r}; give three numbers such as 5,5,5") from None


def save(image: Image.Image, path: Path) -> None:
    """Write an image whole or not at all."""
    data = io.BytesIO()
    try:
        image.save(data, Image.registered_extensions()[path.suffix.lower()])
    except (OSError, ValueError) as error:  # such as a picture too large for the format
        raise MRCError(f"{path} cannot be written ({error}); choose another format") from None
    write_file(path, data.getvalue())


def main() -> None:
    args = arguments().parse_args()
    sys.exit(run_command(lambda: edit(args)))


if __name__ == "__main__":
    main()
