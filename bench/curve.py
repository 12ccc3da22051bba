"""Quality against seconds an edit: a teacher and its students by steps, precision and tier, scored by the oracle.

    python bench/curve.py --teacher TEACHER --student STUDENT --plot curve.png --json curve.json
    python bench/curve.py --teacher TEACHER/onnx --student STUDENT/onnx --backend openvino --precision float32,int8

Every point edits the same held-out scenes of the miniature world with the same seeds, asked for 5,5,5.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from mrc_edit.bench.miniature import edit_scenes, score_scenes, summary
from mrc_edit.bench.options import command_parser, require_at_least, whole_numbers
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.runner import run_in_turn, seconds_of
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.core.figures import new_figure, write_figure
from mrc_edit.core.reward import PERSPECTIVES
from mrc_edit.core.schema import JsonObject
from mrc_edit.engine import Engine
from mrc_edit.engine.tiers import TIERS
from mrc_edit.train.miniature.photographs import load_photographs
from mrc_edit.train.miniature.scene import render
from mrc_edit.train.miniature.triplets import held_out, to_image

COLUMNS = [
    Column("", "{line}"),
    Column("steps", "{steps}"),
    Column("seconds an edit", "{seconds:.3f}"),
    *(Column(f"{p}: mean, pass", f"{{{p}_mean:.2f}}, {{{p}_pass:.1f}} % ({{{p}_low}}–{{{p}_high}})")
      for p in PERSPECTIVES),
]  # fmt: skip


def engines(args: argparse.Namespace) -> dict[str, tuple[Engine, list[int]]]:
    """By line of the figure: an engine and the numbers of steps."""
    lines: dict[str, tuple[Engine, list[int]]] = {}
    for name, model, steps in (("teacher", args.teacher, args.steps), ("student", args.student, args.student_steps)):
        if model is None:
            continue
        for precision in args.precision.split(",") if args.precision else [None]:
            for tier in args.tiers.split(","):
                label = ", ".join([name, *([precision] if precision else []), *([tier] if tier != "exact" else [])])
                engine = Engine.from_pretrained(model, args.backend, precision=precision, tier=tier)
                lines[label] = engine, whole_numbers(steps, "--steps" if name == "teacher" else "--student-steps")
    return lines


def points(lines: dict[str, tuple[Engine, list[int]]], args: argparse.Namespace) -> list[dict]:
    """A row a line and number of steps: `miniature.summary` and the median seconds of one edit alone."""
    photographs = load_photographs(args.photographs)
    edits = held_out(photographs, args.scenes)
    first = to_image(render(edits[0].source, photographs))
    settings = {
        "scheduler": args.scheduler,
        "guidance_scale": args.guidance,
        "image_guidance_scale": args.image_guidance,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    variants: dict[tuple[str, int], Callable[[], float]] = {}
    rows = []
    for label, (engine, numbers) in lines.items():
        student = engine.backend.geometry.embeds_guidance  # has a sampler of its own
        own: JsonObject = {name: value for name, value in given.items() if name != "scheduler" or not student}
        for steps in numbers:
            options = {**own, "num_inference_steps": steps}
            edit = partial(engine.edit, first, edits[0].instruction, seed=0, resolution=0, **options)
            variants[label, steps] = partial(seconds_of, edit)
            images = edit_scenes(engine, edits, photographs, f"{label}, {steps} steps", **options)
            scores = score_scenes(images, edits, photographs)
            rows.append({"line": label, "steps": steps, **summary(scores, [edit.kind for edit in edits])})
    seconds = run_in_turn(variants, args.rounds, warmup=1, unit="edit")
    return [{**row, "seconds": median(seconds[row["line"], row["steps"]])} for row in rows]


def flat_rows(rows: list[dict]) -> list[Row]:
    """The rows of `points` for `COLUMNS`."""
    flat: list[Row] = []
    for row in rows:
        cells: dict[str, str | float | None] = {key: row[key] for key in ("line", "steps", "seconds")}
        for p in PERSPECTIVES:
            cells[f"{p}_mean"], cells[f"{p}_pass"] = row[p]["mean"], row[p]["pass"]
            cells[f"{p}_low"], cells[f"{p}_high"] = row[p]["interval"]
        flat.append(cells)
    return flat


def plot(rows: list[dict], scenes: int, path: Path) -> None:
    """Pass rate by seconds, one panel a perspective, a line an engine; points carry their steps."""
    figure = new_figure(11, 3.8)
    panels = figure.subplots(1, len(PERSPECTIVES), sharey=True)
    for axes, perspective in zip(panels, PERSPECTIVES, strict=True):
        for line in dict.fromkeys(row["line"] for row in rows):
            own = sorted((row for row in rows if row["line"] == line), key=lambda row: row["seconds"])
            axes.plot([row["seconds"] for row in own], [row[perspective]["pass"] for row in own], "o-", label=line)
            for row in own:
                place = (row["seconds"], row[perspective]["pass"])
                axes.annotate(str(row["steps"]), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set_title(perspective)
        axes.set_xlabel("seconds an edit")
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("edits that pass, %")
    panels[-1].legend(loc="lower right", fontsize=8)
    figure.suptitle(f"{scenes} held-out scenes; numbers are steps")
    write_figure(path, figure)


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("--teacher", help="checkpoint or export folder, or mini (default none)")
    parser.add_argument("--student", help="what was distilled from it (default none)")
    parser.add_argument("--steps", default="30,8,4,2", help="denoising steps of the teacher (default %(default)s)")
    parser.add_argument("--student-steps", default="4,2,1", help="denoising steps of the student (default %(default)s)")
    parser.add_argument("--backend", default="auto", help="backend of all engines (default %(default)s)")
    parser.add_argument("--precision", help="precisions, such as float32,int8 (default the backend's own)")
    parser.add_argument("--tiers", default="exact", help="tiers, such as exact,fast (default %(default)s)")
    parser.add_argument("--scheduler", help="the teacher's sampler (default its own)")
    parser.add_argument("--guidance", type=float, help="weight of the instruction (default each model's own)")
    parser.add_argument("--image-guidance", type=float, help="weight of the source image (default each model's own)")
    parser.add_argument("--photographs", type=Path, help="folder of photographs, as for training (default none)")
    parser.add_argument("--scenes", type=int, default=140, help="scenes to edit (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed edits a point (default %(default)s)")
    add_output_options(parser, plot="draw the curve here (default none)")
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, scenes=1, rounds=1)
    if args.teacher is None and args.student is None:
        raise MRCError("there is nothing to measure; give --teacher, --student or both")
    if unknown := [tier for tier in args.tiers.split(",") if tier not in TIERS]:
        raise MRCError(f"--tiers has {unknown[0]!r}; choose among {', '.join(TIERS)}")
    rows = points(engines(args), args)
    print(table(COLUMNS, flat_rows(rows), "Quality against seconds").markdown())
    write_report(args, {"scenes": args.scenes, "rounds": args.rounds, "rows": rows}, flat_rows(rows))
    if args.plot:
        plot(rows, args.scenes, args.plot)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
