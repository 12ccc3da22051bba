"""Training throughput and memory, and what caching latents gains.

    python bench/training.py CHECKPOINT --resolution 256 --batch-size 4 --steps 4 --rounds 3

Each round trains once with pictures encoded in every step and once from cached latents, each in a new process.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median

from mrc_edit.bench.child import child
from mrc_edit.bench.machine import describe_machine
from mrc_edit.bench.memory import memory_bytes
from mrc_edit.bench.options import command_parser, require_at_least
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.runner import ratios, run_in_turn
from mrc_edit.core.errors import run_command
from mrc_edit.core.schema import JsonObject

MODES = ("pictures", "cached")
COLUMNS = [
    Column("batches from", "{mode}"),
    Column("images/s", "{images_per_s:.2f}"),
    Column("peak memory", "{peak_bytes:.1f} GB", scale=1e-9),
]

Settings = JsonObject  # fields of TrainConfig


def prepare_run(settings: Settings) -> tuple[dict[str, float], None]:
    """For `child`: train with the settings of `TrainConfig`; report images a second without the first step, and peak
    memory."""
    from mrc_edit.train.config import TrainConfig
    from mrc_edit.train.loop import train
    from mrc_edit.train.state import list_states

    config = TrainConfig(**settings)
    train(config)
    curve = json.loads((list_states(Path(config.out))[-1] / "state.json").read_text())["curve"]
    seconds = sum(row[2] for row in curve[1:])
    speed = config.batch_size * (len(curve) - 1) / seconds
    return {"images_per_s": speed, "peak_bytes": float(memory_bytes("VmHWM"))}, None


def time_modes(settings: Settings, rounds: int) -> dict[str, dict[str, float]]:
    """Median images a second and peak memory by mode, and their ratio round by round.

    Args:
        settings: of `TrainConfig`, without `out` and `cache`.
    """
    with tempfile.TemporaryDirectory() as folder:
        numbers = count()

        def training_run(mode: str) -> Callable[[], dict[str, float]]:
            cache = f"{folder}/cache" if mode == "cached" else None

            def run() -> dict[str, float]:
                own = settings | {"out": f"{folder}/{mode}-{next(numbers)}", "cache": cache}
                with child(f"training from {mode}", prepare_run, own) as process:
                    return process.receive()

            return run

        results = run_in_turn({mode: training_run(mode) for mode in MODES}, rounds)
    report = {mode: {key: median(run[key] for run in runs) for key in runs[0]} for mode, runs in results.items()}
    pictures, cached = ([run["images_per_s"] for run in results[mode]] for mode in MODES)
    return report | {"caching_gains": ratios(cached, pictures)}


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint folder to train from")
    parser.add_argument("--stage", type=int, default=2, help="training stage, 1 or 2 (default 2)")
    parser.add_argument("--resolution", type=int, default=256, help="pixels of a side (default 256)")
    parser.add_argument("--batch-size", type=int, default=4, help="triplets a step (default 4)")
    parser.add_argument("--mixed-precision", default="no", help="no, fp16 or bf16 (default no)")
    parser.add_argument("--steps", type=int, default=4, help="training steps of a run, from 2 (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default 3)")
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, steps=2, rounds=1)
    settings = {
        "init": args.checkpoint,
        "data": f"miniature:{args.batch_size * args.steps}",
        "stage": args.stage,
        "resolution": args.resolution,
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
        "steps": args.steps,
        "checkpoint_every": args.steps,
        "augment": False,
        "validate_every": 0,
        "tracker": "",
    }
    report = time_modes(settings, args.rounds)
    rows: list[Row] = [{"mode": mode, **report[mode]} for mode in MODES]
    gain = report["caching_gains"]
    note = f"caching gains {gain['median']:.2f}× ({gain['least']:.2f}–{gain['greatest']:.2f})"
    print(table(COLUMNS, rows, note=note).markdown())
    write_report(args, report | {"machine": describe_machine()}, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
