"""The flags of `mrc-edit` that say how to edit and what computes it, and what they mean to the engine."""

import argparse

from ..core.adapters import add_adapter_flags, parse_embeddings, parse_loras
from ..core.errors import MRCError
from ..core.layout import add_layout_options, layout_options
from ..core.precision import PRECISIONS, TF32
from .backends import BACKENDS
from .engine import Engine
from .framing import FITS
from .request import EditOptions
from .sampling import SAMPLERS
from .tiers import TIERS


def add_edit_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that describe the edit."""
    reward = parser.add_argument_group("rewards")
    reward.add_argument(
        "--reward",
        default="5,5,5",
        metavar="F,P,Q",
        help="scores to ask for: following, preserving, quality, each 0 to 5 (default: 5,5,5)",
    )
    reward.add_argument("--reward-text", metavar="TEXT", help="faults to ask for (default: none)")
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
        "--num-images", type=int, default=1, metavar="N", help="edits of each image, with seeds in a row (default: 1)"
    )
    sampling.add_argument(
        "--resolution", type=int, help="pixels of the longer side (default: the model's own); 0 keeps the size"
    )
    sampling.add_argument(
        "--fit",
        choices=FITS,
        default="crop",
        help="crop, pad or stretch the image to that size, or make it a square (default: crop)",
    )
    sampling.add_argument(
        "--keep-size", action="store_true", help="scale the edit back to the image's size (default: no)"
    )


def add_runtime_flags(parser: argparse.ArgumentParser) -> None:
    """What computes it."""
    runtime = parser.add_argument_group("runtime")
    runtime.add_argument(
        "--backend", default="auto", metavar="NAME", help=f"auto, {', '.join(BACKENDS)} (default: auto)"
    )
    runtime.add_argument(
        "--precision",
        choices=(*PRECISIONS, TF32, "int8"),
        help="number format to compute in (default: the backend's choice)",
    )
    runtime.add_argument(
        "--tier",
        choices=list(TIERS),
        default="exact",
        help="fast and turbo compute less and lose quality, see docs/runtime.md (default: exact)",
    )
    runtime.add_argument(
        "--provider",
        metavar="NAME",
        help="ONNX Runtime's execution provider (default: CUDA where it has that, else the CPU)",
    )
    runtime.add_argument("--device", help="PyTorch device: cpu, cuda, cuda:1 (default: the GPU, where there is one)")
    runtime.add_argument("--threads", type=int, help="number of CPU threads (default: the backend's choice)")
    runtime.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="most images of one size to edit together (default: 1)"
    )
    add_layout_options(runtime)
    add_adapter_flags(runtime)


def edit_options(args: argparse.Namespace) -> EditOptions:
    """What all edits share, under the names of `Engine.edit`."""
    steered_from = None if args.reward_guidance is None else scores("--reward-guidance", args.reward_guidance)
    return {
        "reward_scores": scores("--reward", args.reward),
        "reward_text": args.reward_text,
        "reward_guidance": steered_from,
        "reward_guidance_text": args.reward_guidance_text,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "image_guidance_scale": args.image_guidance,
        "scheduler": args.scheduler,
        "resolution": args.resolution,
        "fit": args.fit,
        "keep_size": args.keep_size,
    }


def open_engine(args: argparse.Namespace) -> Engine:
    """The engine of the runtime flags."""
    given = {"provider": args.provider, "device": args.device}
    own = layout_options(args) | {name: value for name, value in given.items() if value is not None}
    return Engine.from_pretrained(
        args.model,
        args.backend,
        precision=args.precision,
        tier=args.tier,
        threads=args.threads,
        lora=parse_loras(args.lora),
        embeddings=parse_embeddings(args.embedding),
        **own,
    )


def scores(option: str, value: str) -> list[float]:
    try:
        return [float(score) for score in value.split(",")]
    except ValueError:
        raise MRCError(f"{option} is {value!r}; give three numbers such as 5,5,5") from None
