"""What the lossy tiers and precisions cost in fidelity, on held-out scenes of the miniature world.

    python -m mrc_edit.bench.tiers EXPORT --scenes 100 --json tiers.json

EXPORT was made from mini with `mrc-export --int8`. Every row edits the same scenes with the same seeds and is
held against the first: PSNR and SSIM of the pictures, and the oracle's pass rates.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from skimage.metrics import structural_similarity

from ..core.errors import MRCError, run_command
from ..core.files import write_file
from ..core.reward import PERSPECTIVES
from ..core.tables import Table
from ..engine import Engine
from ..train.miniature.photographs import load_photographs
from ..train.miniature.triplets import held_out
from .miniature import edited, scores_of, summary

# backend, precision, tier; the first is the truth
ROWS = (
    ("openvino", "float32", "exact"),
    ("openvino", "bfloat16", "exact"),
    ("openvino", "int8", "exact"),
    ("openvino", "float32", "fast"),
    ("openvino", "int8", "turbo"),
)


def fidelity(images: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Means over scenes of PSNR in dB (equal pictures count as 100) and SSIM, and the least PSNR."""
    errors = ((images / 255.0 - truth / 255.0) ** 2).mean(axis=(1, 2, 3))
    decibels = -10 * np.log10(np.maximum(errors, 1e-10))
    similarity = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(images, truth, strict=True)]
    return {
        "psnr_db": round(float(decibels.mean()), 2),
        "psnr_least_db": round(float(decibels.min()), 2),
        "ssim": round(float(np.mean(similarity)), 4),
    }


def measure(folder: Path, photographs: list[np.ndarray], scenes: int, settings: dict) -> dict[str, dict]:
    edits = held_out(photographs, scenes)
    report: dict[str, dict] = {}
    truth = None
    for backend, precision, tier in ROWS:
        name = f"{backend}:{precision}:{tier}"
        engine = Engine.from_pretrained(folder, backend, precision=precision, tier=tier)
        images = edited(engine, edits, photographs, name, **settings)
        truth = images if truth is None else truth
        passed = summary(scores_of(images, edits, photographs), [edit.kind for edit in edits])
        report[name] = fidelity(images, truth) | {"passes": {p: passed[p]["pass"] for p in PERSPECTIVES}}
    return report


def markdown(report: dict[str, dict]) -> str:
    head = ["variant", "PSNR, mean", "least", "SSIM", *(f"{p} %" for p in PERSPECTIVES)]
    rows = [
        [name, f"{row['psnr_db']:.1f} dB", f"{row['psnr_least_db']:.1f} dB", f"{row['ssim']:.3f}"]
        + [f"{row['passes'][p]:.1f}" for p in PERSPECTIVES]
        for name, row in report.items()
    ]
    rows[0][1:4] = ["the truth", "", ""]
    return Table("", head, rows).markdown()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mrc_edit.bench.tiers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="export folder of mini with int8 graphs")
    parser.add_argument("--photographs", type=Path, help="the folder of pictures that training had")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--image-guidance", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    def run() -> None:
        if args.scenes < 1:
            raise MRCError(f"--scenes is {args.scenes}; give a number from 1 up")
        settings = {
            "num_inference_steps": args.steps,
            "scheduler": "euler",
            "guidance_scale": args.guidance,
            "image_guidance_scale": args.image_guidance,
        }
        report = measure(args.model, load_photographs(args.photographs), args.scenes, settings)
        print(markdown(report))
        if args.json:
            write_file(args.json, json.dumps({"settings": settings, "scenes": args.scenes, "rows": report}, indent=1))

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
