"""How long a checkpoint takes to load, and how much memory, beside diffusers' own loader.

    python bench/loading.py CHECKPOINT --file model.safetensors --rounds 3

Each load is in a new process, with the files in the system's cache. Libraries map the weights, so a second time counts
too: until every weight was read once, as the first edit does.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from mrc_edit.bench.child import child
from mrc_edit.bench.machine import describe_machine
from mrc_edit.bench.memory import memory_bytes
from mrc_edit.bench.options import command_parser, require_at_least
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.runner import ratios, run_in_turn
from mrc_edit.core.errors import run_command

COLUMNS = [
    Column("loader", "{loader}"),
    Column("load", "{load:.1f} s"),
    Column("load and read", "{ready:.1f} s"),
    Column("against diffusers", "{ratio:.2f}×"),
    Column("peak memory / weights", "{memory:.2f}"),
]


def parts_of_ours(model: Path, base: Path | None) -> list[Any]:
    from mrc_edit.model import load_checkpoint

    checkpoint = load_checkpoint(model, base=base)
    return [checkpoint.unet, checkpoint.vae, checkpoint.text_encoder]


def parts_of_theirs(model: Path, base: Path | None) -> list[Any]:
    from diffusers import StableDiffusionInstructPix2PixPipeline as Pipeline

    if base is None:
        pipeline = Pipeline.from_pretrained(str(model), safety_checker=None)
    else:
        pipeline = Pipeline.from_single_file(
            str(model), config=str(base), safety_checker=None, local_files_only=True, torch_dtype=None
        )
    return [pipeline.unet, pipeline.vae, pipeline.text_encoder]


LOADERS = {"mrc-edit": parts_of_ours, "diffusers": parts_of_theirs}


def prepare_load(loader: str, model: Path, base: Path | None) -> tuple[dict[str, float], None]:
    """For `child`: seconds to load, seconds until every weight was read, and memory above that of the imports."""
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    from mrc_edit.model import load_checkpoint  # noqa: F401

    before, start = memory_bytes("VmRSS"), time.perf_counter()
    parts = LOADERS[loader](model, base)
    load = time.perf_counter() - start
    weights = [weight for part in parts for weight in part.parameters()]
    for weight in weights:
        weight.sum()
    size = sum(weight.nbytes for weight in weights)
    ready = time.perf_counter() - start
    return {"load": load, "ready": ready, "memory": (memory_bytes("VmHWM") - before) / size}, None


def time_loaders(model: Path, base: Path | None, rounds: int) -> list[Row]:
    """One row a loader: medians, and the seconds until all is read against diffusers', round by round."""

    def loading(loader: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            with child(loader, prepare_load, loader, model, base) as process:
                return process.receive()

        return run

    results = run_in_turn({loader: loading(loader) for loader in LOADERS}, rounds, warmup=1)  # reads the disk
    ready = {loader: [run["ready"] for run in runs] for loader, runs in results.items()}
    kind = "file" if model.is_file() else "folder"
    return [
        {
            "loader": f"{loader}, {kind}",
            "ratio": ratios(ready[loader], ready["diffusers"])["median"],
            **{key: median(run[key] for run in runs) for key in runs[0]},
        }
        for loader, runs in results.items()
    ]


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder, which is also the base of --file")
    parser.add_argument("--file", type=Path, help="the same model in a single .safetensors file (default none)")
    parser.add_argument("--rounds", type=int, default=3, help="loads of each kind (default 3)")
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, rounds=1)
    rows = time_loaders(args.checkpoint, None, args.rounds)
    if args.file is not None:
        rows += time_loaders(args.file, args.checkpoint, args.rounds)
    print(table(COLUMNS, rows).markdown())
    write_report(args, {"loaders": rows, "machine": describe_machine()}, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
