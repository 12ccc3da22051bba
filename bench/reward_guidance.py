"""What reward guidance does to the three perspectives, on held-out scenes of the miniature world.

    python -m mrc_edit.bench.reward_guidance --model mini --scenes 50 --plot reward_guidance.png --json guidance.json

The text branch is always asked for 5,5,5. The other branches are asked for less and less, from 5 (as
released) to 0, on the same scenes with the same seeds.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from ..core.errors import MRCError, run_command
from ..core.files import write_file
from ..core.reward import PERSPECTIVES
from ..core.tables import Table
from ..engine import Engine
from ..train.miniature.photographs import load_photographs
from ..train.miniature.triplets import held_out
from .miniature import faults, measure, reward_texts, summary
from .significance import mean_interval

STRENGTHS = (5, 4, 3, 2, 1, 0)  # scores that the other branches are asked for
LOWERED = {"all": PERSPECTIVES, **{name: (name,) for name in PERSPECTIVES}}


def sweep(
    model: str, folder: Path | None, scenes: int, lowered: str, scales: list[float], settings: dict
) -> list[dict]:
    """One row a guidance scale and strength: `miniature.summary`, and by perspective the mean `change`
    from the first strength with its 95 % interval over scenes."""
    photographs = load_photographs(folder)
    edits = held_out(photographs, scenes)
    engine = Engine.from_pretrained(model)
    said = [faults(edit, photographs) for edit in edits]
    rows = []
    for scale in scales:
        released = np.empty(0)
        for strength in STRENGTHS:
            asked = tuple(strength if name in LOWERED[lowered] else 5 for name in PERSPECTIVES)
            found = measure(
                engine,
                edits,
                photographs,
                f"guidance {scale:g}, others asked for {asked}",
                reward_guidance=asked,
                reward_guidance_text=reward_texts(asked, said),
                guidance_scale=scale,
                **settings,
            )
            if strength == STRENGTHS[0]:
                released = found
            row = {"guidance_scale": scale, "strength": strength, **summary(found, [edit.kind for edit in edits])}
            for i, name in enumerate(PERSPECTIVES):
                differences = (found - released)[:, i].tolist()
                low, high = mean_interval(differences, [str(scene) for scene in range(scenes)])
                row[name] |= {"change": float(np.mean(differences)), "change_interval": [low, high]}
            rows.append(row)
    return rows


def table(rows: list[dict]) -> Table:
    cells = [
        [f"{row['guidance_scale']:g}", str(row["strength"])]
        + [
            f"{row[name]['mean']:.2f}, {row[name]['change']:+.2f} "
            f"({row[name]['change_interval'][0]:+.2f} to {row[name]['change_interval'][1]:+.2f})"
            for name in PERSPECTIVES
        ]
        for row in rows
    ]
    return Table(
        "Reward guidance", ["guidance", "others asked for", *(f"{n}: mean, change" for n in PERSPECTIVES)], cells
    )


def plot(rows: list[dict], lowered: str, scenes: int, path: Path) -> None:
    """Mean score by strength, one panel a perspective, one line a guidance scale."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(PERSPECTIVES), figsize=(10, 3.6), sharey=True, layout="constrained")
    for axes, name in zip(panels, PERSPECTIVES, strict=True):
        for scale in dict.fromkeys(row["guidance_scale"] for row in rows):
            line = [row for row in rows if row["guidance_scale"] == scale]
            means = np.array([row[name]["mean"] for row in line])
            changes = np.array([row[name]["change"] for row in line])
            low, high = np.array([row[name]["change_interval"] for row in line]).T
            bars = (changes - low, high - changes)
            strengths = [row["strength"] for row in line]
            axes.errorbar(strengths, means, bars, marker="o", capsize=3, label=f"guidance {scale:g}")
        axes.set_title(name)
        axes.set_xlabel("score the other branches are asked for")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("oracle's score, mean")
    panels[0].set_ylim(0, 5)
    panels[-1].legend(loc="lower left")
    figure.suptitle(f"{scenes} held-out scenes, lowered: {lowered}; bars: 95 % of the change from the left end")
    figure.savefig(path, dpi=120)


def run(args: argparse.Namespace) -> None:
    if args.scenes < 1:
        raise MRCError(f"--scenes is {args.scenes}; give a number from 1 up")
    try:
        scales = [float(scale) for scale in args.guidance.split(",")]
    except ValueError:
        raise MRCError(f"--guidance is {args.guidance!r}; give numbers such as 1.5,4") from None
    settings = {
        "num_inference_steps": args.steps,
        "scheduler": args.scheduler,
        "image_guidance_scale": args.image_guidance,
    }
    rows = sweep(args.model, args.photographs, args.scenes, args.lower, scales, settings)
    print(table(rows).markdown())
    if args.json:
        report = {"settings": settings, "scenes": args.scenes, "lowered": args.lower, "rows": rows}
        write_file(args.json, json.dumps(report, indent=1) + "\n")
    if args.plot:
        plot(rows, args.lower, args.scenes, args.plot)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mrc_edit.bench.reward_guidance", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="mini", help="MRC checkpoint or export folder, or mini")
    parser.add_argument("--photographs", type=Path, help="the folder of pictures that training had")
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--lower", choices=list(LOWERED), default="all", help="which scores are lowered")
    parser.add_argument("--guidance", default="1.5,2.5,4", help="guidance scales, one line each")
    parser.add_argument("--image-guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--scheduler", default="euler")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
