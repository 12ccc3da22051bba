"""What rewards after every block cost: a step of a model that has them, compared with the released layer alone.

    python bench/reward_blocks.py CHECKPOINT --size 256

CHECKPOINT has `reward_injection="time"`. The other model is the same with seeded layers after every block. Both are
exported to a temporary folder, and their steps with three branches run in turn.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

from mrc_edit.bench.flop_count import count_operations, empty_checkpoint, step_parameters
from mrc_edit.bench.launches import launches
from mrc_edit.bench.machine import describe_machine
from mrc_edit.bench.options import command_parser, require_at_least
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.runner import ratios, run_in_turn, seconds_of
from mrc_edit.bench.savings import AS_IS, steps
from mrc_edit.bench.workload import Workload, parse_variant
from mrc_edit.core.errors import run_command
from mrc_edit.core.temporary import private_folder
from mrc_edit.engine.shipped import shipped
from mrc_edit.export.exporter import export
from mrc_edit.model import load_checkpoint, save_checkpoint
from mrc_edit.model.extend import add_reward_blocks
from mrc_edit.model.seeded import seeded
from mrc_edit.model.unet import REWARD_INJECTIONS

COLUMNS = [
    Column("runtime", "{variant}"),
    Column("rewards", "{injection}"),
    Column("step", "{seconds:.1f} ms", scale=1e3),
    Column("times time", "{ratio:.3f}"),
]
WORK = [
    Column("rewards", "{injection}"),
    Column("GFLOP a step", "{operations:.2f}", scale=1e-9),
    Column("weights a step reads", "{parameters:.2f} M", scale=1e-6),
]


def both(checkpoint: Path, folder: Path) -> dict[str, Path]:
    """The checkpoint and the same with layers after every block, by `reward_injection`.

    Raises:
        MRCError: it has no rewards, or has them after every block.
    """
    loaded = load_checkpoint(checkpoint)
    unet = add_reward_blocks(loaded.unet)
    seeded(unet.reward_blocks)
    save_checkpoint(replace(loaded, unet=unet), folder / "blocks")
    return {"time": checkpoint, "blocks": folder / "blocks"}


def count(checkpoints: dict[str, Path], size: int) -> list[Row]:
    """One row an injection: floating-point operations of a step, and the weights that it reads."""
    rows: list[Row] = []
    for injection, folder in checkpoints.items():
        empty = empty_checkpoint(folder)
        operations = count_operations(empty, size, Workload(size, 1).plan())
        rows.append({"injection": injection, "operations": operations, "parameters": step_parameters(empty.unet)})
    return rows


def time_steps(
    checkpoints: dict[str, Path], exports: dict[str, Path], variant: str, size: int, rounds: int
) -> list[Row]:
    """One row an injection: median seconds of a step, and the ratio to "time" of the same round."""
    runs = {}
    for injection, folder in checkpoints.items():
        step = steps(parse_variant(variant, folder, exports[injection]).open(), size)[AS_IS][1]
        runs[injection] = lambda step=step: seconds_of(step)
    seconds = run_in_turn(runs, rounds, warmup=1, unit="step")
    return [
        {
            "variant": variant,
            "injection": injection,
            "seconds": median(values),
            "ratio": ratios(values, seconds["time"])["median"],
        }
        for injection, values in seconds.items()
    ]


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("checkpoint", help='MRC checkpoint folder, or "mini"')
    parser.add_argument(
        "--variants", default="onnxruntime,openvino:float32,torch:float32", help="backend:precision (%(default)s)"
    )
    parser.add_argument("--size", type=int, default=256, help="pixels of a side, a multiple of 64 (default 256)")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each (default 15)")
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, rounds=1, size=64)
    with private_folder() as folder:
        checkpoints = both(shipped(args.checkpoint, "torch"), folder)
        work = count(checkpoints, args.size)
        exports = {injection: folder / f"export-{injection}" for injection in checkpoints}
        for injection, source in checkpoints.items():
            export(source, exports[injection])
        rows = [
            row
            for variant in args.variants.split(",")
            for row in time_steps(checkpoints, exports, variant, args.size, args.rounds)
        ]
    counts = {injection: launches(injection=injection) for injection in REWARD_INJECTIONS}
    print(table(WORK, work).markdown(), table(COLUMNS, rows).markdown(), sep="\n\n")
    for injection, each in counts.items():
        print(f"launches a step of the released U-Net, {injection}: {each}")
    report = {"size": args.size, "machine": describe_machine(), "work": work, "steps": rows, "launches": counts}
    write_report(args, report, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
