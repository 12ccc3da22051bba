"""Does a step cost what its operations cost? Seconds and counted operations, by image size and batch.

python bench/scaling.py CHECKPOINT EXPORT --variant openvino:bfloat16 --sizes 256,384,512 --batches 1,2
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from mrc_edit.bench.machine import describe_machine
from mrc_edit.bench.options import command_parser, require_at_least, whole_numbers
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.runner import run_in_turn
from mrc_edit.bench.workload import Workload, edit, parse_variant
from mrc_edit.core.errors import run_command
from mrc_edit.engine import Engine

STEPS = 2  # of each timed edit
COLUMNS = [
    Column("size", "{size}"),
    Column("batch", "{batch}"),
    Column("operations", "{operations:.0f} GFLOP", scale=1e-9),
    Column("step", "{seconds:.2f} s"),
    Column("operations against the first", "{operations_ratio:.2f}"),
    Column("seconds against the first", "{seconds_ratio:.2f}"),
]


def time_workloads(engine: Engine, workloads: Sequence[Workload], rounds: int) -> list[float]:
    """Median seconds of a step of each workload."""

    def step_seconds(workload: Workload) -> Callable[[], list[float]]:
        return lambda: edit(engine, workload, "latent").step_seconds

    runs = {workload: step_seconds(workload) for workload in workloads}
    results = run_in_turn(runs, rounds, warmup=1, unit="edit")  # the first edit of a size compiles
    return [median(step for steps in results[workload] for step in steps) for workload in workloads]


def scaling(checkpoint: Path, exported: Path, variant: str, cases: list[tuple[int, int]], rounds: int) -> list[Row]:
    """One row a (size, batch): operations and median seconds of a step, and both relative to the first row."""
    from mrc_edit.bench.flop_count import count_operations, empty_checkpoint

    workloads = [Workload(size, STEPS, batch) for size, batch in cases]
    empty = empty_checkpoint(checkpoint)
    operations = [count_operations(empty, workload.size, workload.plan()) for workload in workloads]
    seconds = time_workloads(parse_variant(variant, checkpoint, exported).open(), workloads, rounds)
    return [
        {
            "size": size,
            "batch": batch,
            "operations": count,
            "seconds": time,
            "operations_ratio": count / operations[0],
            "seconds_ratio": time / seconds[0],
        }
        for (size, batch), count, time in zip(cases, operations, seconds, strict=True)
    ]


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder")
    parser.add_argument("export", type=Path, help="its export folder")
    parser.add_argument("--variant", default="onnxruntime", help="backend:precision:tier (default %(default)s)")
    parser.add_argument(
        "--sizes", default="256,384,512", help="pixels of a side, separated by commas (default 256,384,512)"
    )
    parser.add_argument(
        "--batches",
        default="1",
        help="images an edit, the others than the first at the first size (default %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed edits of each case (default 3)")
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, rounds=1)
    sizes, batches = whole_numbers(args.sizes, "--sizes"), whole_numbers(args.batches, "--batches")
    cases = [(size, batches[0]) for size in sizes] + [(sizes[0], batch) for batch in batches[1:]]
    rows = scaling(args.checkpoint, args.export, args.variant, cases, args.rounds)
    print(table(COLUMNS, rows).markdown())
    write_report(args, {"variant": args.variant, "machine": describe_machine(), "rows": rows}, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
