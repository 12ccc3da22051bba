"""How well a model edits held-out scenes of the miniature world, scored by its exact oracle.

    python -m mrc.bench.quality --world miniature --model mini --baseline STAGE1 --json quality.json

Every row edits the same scenes with the same seeds: the baseline without rewards, MRC asked for
5,5,5, for 1,1,1, and for one low score at a time.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..engine import Engine
from ..errors import MRCError, run_command
from ..reward import PERSPECTIVES
from ..train.miniature.edits import KINDS, Edit
from ..train.miniature.oracle import PASS, score
from ..train.miniature.photographs import load_photographs
from ..train.miniature.scene import render
from ..train.miniature.triplets import held_out, to_image
from ..train.report import write_report

BATCH = 25
# What a low score is asked for with, as in training data
FAULTS = ("the picture did not change", "the rest of the picture changed", "coloured spots and noise")
REQUESTS = {
    "MRC 5,5,5": (5, 5, 5),
    "MRC 1,1,1": (1, 1, 1),
    "MRC 1,5,5": (1, 5, 5),
    "MRC 5,1,5": (5, 1, 5),
    "MRC 5,5,1": (5, 5, 1),
}


def reward_text(scores: tuple[int, ...]) -> str:
    return "; ".join("None" if score == 5 else fault for score, fault in zip(scores, FAULTS, strict=True))


def interval(passed: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in per cent."""
    z, share = 1.959964, passed / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return round(100 * (centre - half), 1), round(100 * (centre + half), 1)


def measure(engine: Engine, edits: list[Edit], photographs: list[np.ndarray], name: str, **settings) -> np.ndarray:
    """Oracle scores `[scenes, 3]` of the engine's edits, seed i for scene i."""
    rows = []
    for start in tqdm(range(0, len(edits), BATCH), desc=name, unit="batch", disable=None):
        some = edits[start : start + BATCH]
        images = [to_image(render(edit.source, photographs)) for edit in some]
        instructions = [edit.instruction for edit in some]
        seeds = list(range(start, start + len(some)))
        result = engine.edit(images, instructions, seed=seeds, resolution=0, **settings)
        rows += [
            score(edit, np.asarray(image), photographs)[0] for edit, image in zip(some, result.images, strict=True)
        ]
    return np.array(rows)


def summary(scores: np.ndarray, kinds: list[str]) -> dict:
    """Mean, pass rate in per cent and its interval by perspective; following's pass rate by kind."""
    passed = scores >= PASS
    table: dict = {
        perspective: {
            "mean": round(float(scores[:, i].mean()), 2),
            "pass": round(100 * float(passed[:, i].mean()), 1),
            "interval": interval(int(passed[:, i].sum()), len(scores)),
        }
        for i, perspective in enumerate(PERSPECTIVES)
    }
    of = np.array(kinds)
    table["following_by_kind"] = {
        kind: round(100 * float(passed[of == kind, 0].mean()), 1) for kind in KINDS if (of == kind).any()
    }
    return table


def markdown(report: dict[str, dict]) -> str:
    lines = ["| | " + " | ".join(f"{p}: mean, pass" for p in PERSPECTIVES) + " |", "| --- | --- | --- | --- |"]
    for name, row in report.items():
        cells = [
            f"{row[p]['mean']:.2f}, {row[p]['pass']:.1f} % ({row[p]['interval'][0]}–{row[p]['interval'][1]})"
            for p in PERSPECTIVES
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def miniature(model: str, baseline: Path | None, folder: Path | None, scenes: int, settings: dict) -> dict[str, dict]:
    """Summaries by row; see the module's docstring."""
    photographs = load_photographs(folder)
    edits = held_out(photographs, scenes)
    kinds = [edit.kind for edit in edits]
    report = {}
    if baseline is not None:
        found = measure(Engine.from_pretrained(baseline), edits, photographs, "baseline", **settings)
        report["baseline"] = summary(found, kinds)
    engine = Engine.from_pretrained(model)
    for name, request in REQUESTS.items():
        asked = {"reward_scores": request, "reward_text": reward_text(request)}
        report[name] = summary(measure(engine, edits, photographs, name, **asked, **settings), kinds)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mrc.bench.quality", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--world", choices=("miniature",), required=True)
    parser.add_argument("--model", default="mini", help="MRC checkpoint or export folder, or mini")
    parser.add_argument("--baseline", type=Path, help="checkpoint or export folder without rewards")
    parser.add_argument("--photographs", type=Path, help="the folder of pictures that training had")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--scheduler", default="euler")
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--image-guidance", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path, help="mrc-train's OUT, whose report.html shall show the table")
    args = parser.parse_args()

    def run() -> None:
        if args.scenes < 1:
            raise MRCError(f"--scenes is {args.scenes}; give a number from 1 up")
        if args.run and not (args.run / "training.json").is_file():
            raise MRCError(f"--run is {args.run}, which has no training.json; give the OUT of a finished mrc-train")
        settings = {
            "num_inference_steps": args.steps,
            "scheduler": args.scheduler,
            "guidance_scale": args.guidance,
            "image_guidance_scale": args.image_guidance,
        }
        report = miniature(args.model, args.baseline, args.photographs, args.scenes, settings)
        measured = json.dumps({"settings": settings, "scenes": args.scenes, "rows": report}, indent=1) + "\n"
        print(markdown(report))
        if args.json:
            args.json.write_text(measured)
        if args.run:
            (args.run / "scores.json").write_text(measured)
            write_report(args.run)

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
