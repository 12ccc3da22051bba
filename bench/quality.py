"""How well a model edits: held-out scenes of the miniature world, scored by its exact oracle, or Real-Edit.

    python -m mrc_edit.bench.quality --world miniature --model mini --baseline STAGE1 --json quality.json
    python -m mrc_edit.bench.quality --real-edit DIR --model mini --out RUN
    python -m mrc_edit.bench.quality --compare RUN OTHER_RUN --out COMPARISON

docs/training.md tells of the first, docs/real-edit.md of the others.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..core.errors import MRCError, run_command
from ..core.files import write_file
from ..judge.options import add_arguments, given_options, open_judge
from ..judge.questions import VERSION


def run_miniature(args: argparse.Namespace) -> None:
    from ..train.report import write_report
    from .miniature import markdown, miniature

    if args.scenes < 1:
        raise MRCError(f"--scenes is {args.scenes}; give a number from 1 up")
    if args.run and not (args.run / "training.json").is_file():
        raise MRCError(f"--run is {args.run}, which has no training.json; give the OUT of a finished mrc-train")
    report = miniature(args.model, args.baseline, args.photographs, args.scenes, engine_settings(args), args.picture)
    measured = {"settings": engine_settings(args), "scenes": args.scenes, "rows": report}
    print(markdown(report))
    if args.json:
        write_json(args.json, measured)
    if args.run:
        write_json(args.run / "scores.json", measured)
        write_report(args.run)


def run_real_edit(args: argparse.Namespace) -> None:
    from .real_edit.report import tables
    from .real_edit.run import edit_items, judge_items, write_results

    out, options = out_folder(args), given_options(args)
    spending = options.spending()
    judge = open_judge(options, out / "replies", spending) if args.judge == "openai" else None
    items = edit_items(args.real_edit, args.model, out, engine_settings(args))
    rewards = judge_items(judge, items, out, options.concurrency, spending) if judge else None
    judged_by = {"model": options.judge_model, "prompts": VERSION} if judge else None
    results = write_results(items, out, rewards, judged_by)
    print("\n\n".join(table.markdown() for table in tables(results)))
    if args.json:
        write_json(args.json, results)


def run_comparison(args: argparse.Namespace) -> None:
    from .real_edit.compare import compare, tables

    first, second = args.compare
    report = compare(first, second, out_folder(args))
    print("\n\n".join(table.markdown() for table in tables(report)))
    if args.json:
        write_json(args.json, report)


def engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "num_inference_steps": args.steps,
        "scheduler": args.scheduler,
        "guidance_scale": args.guidance,
        "image_guidance_scale": args.image_guidance,
    }


def out_folder(args: argparse.Namespace) -> Path:
    if args.out is None:
        raise MRCError("give --out, the folder to write to")
    return args.out


def write_json(path: Path, value: dict) -> None:
    write_file(path, json.dumps(value, indent=1) + "\n")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mrc_edit.bench.quality", description=(__doc__ or "").splitlines()[0]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--world", choices=("miniature",))
    what.add_argument("--real-edit", type=Path, metavar="DIR", help="the folder of Real-Edit")
    what.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two OUTs of --real-edit")
    parser.add_argument("--model", default="mini", help="MRC checkpoint or export folder, or mini")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--scheduler", default="euler")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--image-guidance", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the edits and the pages of --real-edit and --compare")
    parser.add_argument(
        "--judge", choices=("none", "openai"), default="none", help="of --real-edit: the proxies alone, or a model"
    )
    add_arguments(parser)
    world = parser.add_argument_group("--world")
    world.add_argument("--baseline", type=Path, help="checkpoint or export folder without rewards")
    world.add_argument("--photographs", type=Path, help="the folder of pictures that training had")
    world.add_argument("--scenes", type=int, default=500)
    world.add_argument("--picture", type=Path, help="PNG of the first scene of each kind, by every row")
    world.add_argument("--run", type=Path, help="mrc-train's OUT, whose report.html shall show the table")
    return parser


def main() -> None:
    args = arguments().parse_args()
    command = run_miniature if args.world else run_real_edit if args.real_edit else run_comparison
    sys.exit(run_command(lambda: command(args)))


if __name__ == "__main__":
    main()
