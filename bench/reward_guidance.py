"""What reward guidance does to the three perspectives, on held-out scenes of the miniature world.

    python bench/reward_guidance.py --model mini --scenes 50 --plot reward_guidance.png --json guidance.json

The text branch always asks for 5,5,5. The other branches ask for less and less, from 5 (as released) to 0, on the
same scenes with the same seeds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from mrc_edit.bench.miniature import edit_scenes, fault_texts, reward_texts, score_scenes, summary
from mrc_edit.bench.options import add_sampler_options, command_parser, require_at_least, sampler_settings
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.significance import mean_interval
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.core.figures import new_figure, write_figure
from mrc_edit.core.reward import PERSPECTIVES
from mrc_edit.engine import Engine
from mrc_edit.train.miniature.photographs import load_photographs
from mrc_edit.train.miniature.triplets import held_out

STRENGTHS = (5, 4, 3, 2, 1, 0)  # scores that the other branches ask for
LOWERED = {"all": PERSPECTIVES, **{name: (name,) for name in PERSPECTIVES}}
COLUMNS = [
    Column("guidance", "{guidance_scale:g}"),
    Column("others asked for", "{strength}"),
    *(
        Column(f"{p}: mean, change", f"{{{p}_mean:.2f}}, {{{p}_change:+.2f}} ({{{p}_low:+.2f}} to {{{p}_high:+.2f}})")
        for p in PERSPECTIVES
    ),
]


def sweep(
    model: str, folder: Path | None, scenes: int, lowered: str, scales: list[float], settings: dict
) -> list[dict]:
    """One row a guidance scale and strength: `miniature.summary`, and by perspective the mean `change` from the first
    strength with its 95 % interval over scenes.

    Args:
        folder: of photographs, as for training.
        lowered: key of `LOWERED`.
        settings: arguments of `Engine.edit` other than the guidance scale.
    """
    photographs = load_photographs(folder)
    edits = held_out(photographs, scenes)
    engine = Engine.from_pretrained(model)
    faults = [fault_texts(edit, photographs) for edit in edits]
    rows = []
    for scale in scales:
        released = np.empty(0)
        for strength in STRENGTHS:
            asked = tuple(strength if name in LOWERED[lowered] else 5 for name in PERSPECTIVES)
            images = edit_scenes(
                engine,
                edits,
                photographs,
                f"guidance {scale:g}, others asked for {asked}",
                reward_guidance=asked,
                reward_guidance_text=reward_texts(asked, faults),
                guidance_scale=scale,
                **settings,
            )
            scores = score_scenes(images, edits, photographs)
            if strength == STRENGTHS[0]:
                released = scores
            row = {"guidance_scale": scale, "strength": strength, **summary(scores, [edit.kind for edit in edits])}
            for i, name in enumerate(PERSPECTIVES):
                differences = (scores - released)[:, i].tolist()
                low, high = mean_interval(differences, [str(scene) for scene in range(scenes)])
                row[name] |= {"change": float(np.mean(differences)), "change_interval": [low, high]}
            rows.append(row)
    return rows


def flat_rows(rows: list[dict]) -> list[Row]:
    """The rows of `sweep` for `COLUMNS`."""
    flat: list[Row] = []
    for row in rows:
        cells: dict[str, str | float | None] = {key: row[key] for key in ("guidance_scale", "strength")}
        for p in PERSPECTIVES:
            cells[f"{p}_mean"], cells[f"{p}_change"] = row[p]["mean"], row[p]["change"]
            cells[f"{p}_low"], cells[f"{p}_high"] = row[p]["change_interval"]
        flat.append(cells)
    return flat


def plot(rows: list[dict], lowered: str, scenes: int, path: Path) -> None:
    """Mean score by strength, one panel a perspective, one line a guidance scale."""
    figure = new_figure(10, 3.6)
    panels = figure.subplots(1, len(PERSPECTIVES), sharey=True)
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
    write_figure(path, figure)


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("--model", default="mini", help="MRC checkpoint or export folder, or mini (default mini)")
    parser.add_argument(
        "--photographs", type=Path, help="folder of photographs that the model was trained with (default none)"
    )
    parser.add_argument("--scenes", type=int, default=50, help="scenes to edit (default 50)")
    parser.add_argument("--lower", choices=list(LOWERED), default="all", help="which scores are lowered (default all)")
    add_sampler_options(parser, steps=5, guidance="1.5,2.5,4")
    add_output_options(parser, plot="draw the mean scores here (default none)")
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, scenes=1)
    try:
        scales = [float(scale) for scale in args.guidance.split(",")]
    except ValueError:
        raise MRCError(f"--guidance is {args.guidance!r}; give numbers such as 1.5,4") from None
    settings = sampler_settings(args)
    del settings["guidance_scale"]
    rows = sweep(args.model, args.photographs, args.scenes, args.lower, scales, settings)
    print(table(COLUMNS, flat_rows(rows), "Reward guidance").markdown())
    report = {"settings": settings, "scenes": args.scenes, "lowered": args.lower, "rows": rows}
    write_report(args, report, flat_rows(rows))
    if args.plot:
        plot(rows, args.lower, args.scenes, args.plot)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
