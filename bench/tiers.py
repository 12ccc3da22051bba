"""What the lossy tiers and precisions cost in fidelity, on held-out scenes of the miniature world.

    python bench/tiers.py EXPORT --scenes 100 --json tiers.json

EXPORT is one of mini by `mrc-export --int8`. Every row edits the same scenes with the same seeds and is compared
with the first: PSNR and SSIM of the images, and the oracle's pass rates.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from skimage.metrics import structural_similarity

from mrc_edit.bench.miniature import edit_scenes, score_scenes, summary
from mrc_edit.bench.options import add_sampler_options, command_parser, require_at_least, sampler_settings
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.core.errors import run_command
from mrc_edit.core.fidelity import psnr
from mrc_edit.core.reward import PERSPECTIVES
from mrc_edit.engine import Engine
from mrc_edit.train.miniature.photographs import load_photographs
from mrc_edit.train.miniature.triplets import held_out

# backend, precision, tier; the first is the reference
VARIANTS = (
    ("openvino", "float32", "exact"),
    ("openvino", "bfloat16", "exact"),
    ("openvino", "int8", "exact"),
    ("openvino", "float32", "fast"),
    ("openvino", "int8", "turbo"),
)
MOST_DB = 100.0  # PSNR of equal pictures, so that they have a mean
COLUMNS = [
    Column("variant", "{variant}"),
    Column("PSNR, mean", "{psnr_db:.1f} dB", missing="the reference"),
    Column("least", "{psnr_least_db:.1f} dB", missing=""),
    Column("SSIM", "{ssim:.3f}", missing=""),
    *(Column(f"{perspective} %", f"{{{perspective}:.1f}}") for perspective in PERSPECTIVES),
]


def fidelity(images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Means over scenes of PSNR in dB and SSIM, and the least PSNR, of uint8 images `[scenes, H, W, 3]`."""
    pairs = list(zip(images, reference, strict=True))
    decibels = [min(MOST_DB, psnr(*pair, peak=255)) for pair in pairs]
    similarity = [structural_similarity(*pair, channel_axis=-1) for pair in pairs]
    return {
        "psnr_db": round(float(np.mean(decibels)), 2),
        "psnr_least_db": round(min(decibels), 2),
        "ssim": round(float(np.mean(similarity)), 4),
    }


def compare_variants(folder: Path, photographs: list[np.ndarray], scenes: int, settings: dict) -> dict[str, dict]:
    """Fidelity and pass rates by variant; `settings` are arguments of `Engine.edit`."""
    edits = held_out(photographs, scenes)
    report: dict[str, dict] = {}
    reference = None
    for backend, precision, tier in VARIANTS:
        name = f"{backend}:{precision}:{tier}"
        engine = Engine.from_pretrained(folder, backend, precision=precision, tier=tier)
        images = edit_scenes(engine, edits, photographs, name, **settings)
        reference = images if reference is None else reference
        passed = summary(score_scenes(images, edits, photographs), [edit.kind for edit in edits])
        report[name] = fidelity(images, reference) | {"passes": {p: passed[p]["pass"] for p in PERSPECTIVES}}
    return report


def rows(report: dict[str, dict]) -> list[Row]:
    """Flat rows for `COLUMNS`; the first is the reference and has no fidelity."""
    first = next(iter(report))
    return [
        {
            "variant": name,
            **{key: None if name == first else entry[key] for key in ("psnr_db", "psnr_least_db", "ssim")},
            **entry["passes"],
        }
        for name, entry in report.items()
    ]


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("model", type=Path, help="export folder of mini with int8 graphs")
    parser.add_argument(
        "--photographs", type=Path, help="folder of photographs that mini was trained with (default none)"
    )
    parser.add_argument("--scenes", type=int, default=100, help="scenes to edit (default 100)")
    add_sampler_options(parser, steps=30, guidance=1.5)
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, scenes=1)
    settings = sampler_settings(args)
    report = compare_variants(args.model, load_photographs(args.photographs), args.scenes, settings)
    print(table(COLUMNS, rows(report)).markdown())
    write_report(args, {"settings": settings, "scenes": args.scenes, "rows": report}, rows(report))


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
