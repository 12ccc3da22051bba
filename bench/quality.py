"""How well a model edits: held-out scenes of the miniature world, scored by its exact oracle, or Real-Edit.

    python bench/quality.py --world miniature --model mini --baseline STAGE1 --json quality.json
    python bench/quality.py --real-edit DIR --model mini --out RUN
    python bench/quality.py --compare RUN OTHER_RUN --out COMPARISON

docs/training.md explains the first, docs/real-edit.md the others.
"""

import argparse
import sys
from pathlib import Path

from mrc_edit.bench.options import add_sampler_options, command_parser, require_at_least, sampler_settings
from mrc_edit.bench.report import add_output_options, table, write_json, write_report
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.judge.options import add_arguments, given_options, open_judge
from mrc_edit.judge.questions import VERSION


def run_miniature(args: argparse.Namespace) -> None:
    from mrc_edit.bench.miniature import COLUMNS, miniature, rows
    from mrc_edit.train.report import write_report as write_training_report

    require_at_least(args, scenes=1)
    if args.run and not (args.run / "training.json").is_file():
        raise MRCError(f"--run is {args.run}, which has no training.json; give the OUT of a finished mrc-train")
    settings = sampler_settings(args)
    own = {"baseline_steps": args.baseline_steps, "reward_only": args.reward_only}
    summaries = miniature(args.model, args.baseline, args.photographs, args.scenes, settings, args.picture, **own)
    report = {"settings": settings, "scenes": args.scenes, "rows": summaries} | own
    print(table(COLUMNS, rows(summaries)).markdown())
    write_report(args, report, rows(summaries))
    if args.run:
        write_json(args.run / "scores.json", report)
        write_training_report(args.run)


def run_real_edit(args: argparse.Namespace) -> None:
    from mrc_edit.bench.real_edit.report import tables
    from mrc_edit.bench.real_edit.run import edit_items, judge_items, write_results

    out, options = out_folder(args), given_options(args)
    spending = options.spending()
    judge = open_judge(options, out / "replies", spending) if args.judge == "openai" else None
    items, left_out = edit_items(args.real_edit, args.model, out, sampler_settings(args))
    for line in left_out:
        print("left out:", *line.splitlines(), file=sys.stderr)
    rewards = judge_items(judge, items, out, options.concurrency, spending) if judge else None
    judged_by = {"model": options.judge_model, "prompts": VERSION} if judge else None
    results = write_results(items, out, rewards, judged_by, left_out)
    print("\n\n".join(table.markdown() for table in tables(results)))
    if args.json:
        write_json(args.json, results)
    if left_out:
        raise MRCError(f"{len(left_out)} items were left out, {len(items)} are in the report; mend those named above")


def run_comparison(args: argparse.Namespace) -> None:
    from mrc_edit.bench.real_edit.compare import compare, tables

    first, second = args.compare
    report = compare(first, second, out_folder(args))
    print("\n\n".join(table.markdown() for table in tables(report)))
    if args.json:
        write_json(args.json, report)


def out_folder(args: argparse.Namespace) -> Path:
    if args.out is None:
        raise MRCError("give --out, the folder to write to")
    return args.out


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--world", choices=("miniature",), help="edit held-out scenes of the miniature world (default none)"
    )
    what.add_argument(
        "--real-edit", type=Path, metavar="DIR", help="edit the items of Real-Edit's folder (default none)"
    )
    what.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="compare two OUTs of --real-edit (default none)"
    )
    parser.add_argument("--model", default="mini", help="MRC checkpoint or export folder, or mini (default mini)")
    add_sampler_options(parser, steps=2)
    add_output_options(parser)
    parser.add_argument(
        "--out", type=Path, help="folder for the edits and the pages of --real-edit and --compare (default none)"
    )
    parser.add_argument(
        "--judge",
        choices=("none", "openai"),
        default="none",
        help="for --real-edit: only proxies, or a model's judgement too (default none)",
    )
    add_arguments(parser)
    world = parser.add_argument_group("--world")
    world.add_argument("--baseline", type=Path, help="checkpoint or export folder without rewards (default none)")
    world.add_argument("--baseline-steps", type=int, help="denoising steps of the baseline (default as --steps)")
    world.add_argument(
        "--reward-only",
        choices=("all", "scores", "text"),
        default="all",
        help="ask only with this part of the rewards, as the model was trained (default all)",
    )
    world.add_argument(
        "--photographs", type=Path, help="folder of photographs that the model was trained with (default none)"
    )
    world.add_argument("--scenes", type=int, default=500, help="scenes to edit (default 500)")
    world.add_argument(
        "--picture", type=Path, help="draw the first scene of each kind here, edited by every row (default none)"
    )
    world.add_argument("--run", type=Path, help="OUT of mrc-train; its report.html then shows the table (default none)")
    return parser


def run(args: argparse.Namespace) -> None:
    if args.csv and not args.world:
        raise MRCError(f"--csv is {args.csv}, which is for --world alone; give --json")
    command = run_miniature if args.world else run_real_edit if args.real_edit else run_comparison
    command(args)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
