"""Does a step cost what its operations cost? Seconds against counted operations, by picture size and batch.

python -m mrc_edit.bench.scaling CHECKPOINT EXPORT --variant openvino:bfloat16 --sizes 256,384,512 --batches 1,2
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..core.errors import MRCError, run_command
from ..core.files import write_file
from ..core.tables import Table
from ..engine.contract import io
from ..export.trace import constants
from ..model import Checkpoint, load_checkpoint
from ..model.graphs import UNetStep
from .latency import edit, open_engine


def operations(checkpoint: Checkpoint, size: int, batch: int) -> float:
    """Floating-point operations of a step with three branches, counted on shapes alone."""
    latents = size // 2 ** (len(checkpoint.vae.config.block_out_channels) - 1)
    sizes = constants(checkpoint) | {
        "inputs": 2 * batch, "branches": 3 * batch, "guided": batch, "rows": latents, "columns": latents,
    }  # fmt: skip
    inputs, _ = io("unet", checkpoint.unet.rewards)
    with torch.device("meta"):
        feeds = [
            torch.zeros(shape, dtype=torch.int64) if name == "branch" else torch.zeros(shape)
            for name, dims in inputs.items()
            for shape in [[sizes[dim] if isinstance(dim, str) else dim for dim in dims]]
        ]
    step = UNetStep(checkpoint.unet)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step(*feeds)
    return float(counter.get_total_flops())


def measure(checkpoint: Path, exported: Path, variant: str, cases: list[tuple[int, int]], rounds: int) -> list[dict]:
    """One row a (size, batch): operations, median seconds a step over interleaved rounds."""
    loaded = load_checkpoint(checkpoint)
    torch.nn.Module.to(loaded.unet, "meta")
    rows = [{"size": size, "batch": batch, "operations": operations(loaded, size, batch)} for size, batch in cases]
    del loaded
    engine = open_engine(variant, checkpoint, exported, Path())
    seconds: dict[tuple, list[float]] = {case: [] for case in cases}
    with tqdm(total=(rounds + 1) * len(cases), desc="scaling", unit="edit", disable=None) as bar:
        for round_ in range(rounds + 1):
            for size, batch in cases:
                result = edit(engine, size, 2, "latent", batch)
                if round_:  # the first compiles
                    seconds[size, batch] += result.step_seconds
                bar.update()
    for row, case in zip(rows, cases, strict=True):
        row["seconds"] = median(seconds[case])
    for row in rows:
        row["operations_ratio"] = row["operations"] / rows[0]["operations"]
        row["seconds_ratio"] = row["seconds"] / rows[0]["seconds"]
    return rows


def markdown(rows: list[dict]) -> str:
    head = ["size", "batch", "operations", "step", "operations against the first", "seconds against the first"]
    return Table(
        "",
        head,
        [
            [
                str(row["size"]), str(row["batch"]), f"{row['operations'] / 1e9:.0f} GFLOP", f"{row['seconds']:.2f} s",
                f"{row['operations_ratio']:.2f}", f"{row['seconds_ratio']:.2f}",
            ]
            for row in rows
        ],
    ).markdown()  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mrc_edit.bench.scaling", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("export", type=Path, help="its export folder")
    parser.add_argument("--variant", default="onnxruntime", help="as for mrc_edit.bench.latency")
    parser.add_argument("--sizes", default="256,384,512", help="pixels of a side, the first is what others are held to")
    parser.add_argument("--batches", default="1", help="images a pass, at the first size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    def run() -> None:
        try:
            sizes, batches = ([int(part) for part in given.split(",")] for given in (args.sizes, args.batches))
        except ValueError:
            raise MRCError(
                f"--sizes {args.sizes!r}, --batches {args.batches!r}: give whole numbers and commas"
            ) from None
        if min(*sizes, *batches, args.rounds) < 1:
            raise MRCError("--sizes, --batches and --rounds are at least 1")
        cases = [(size, batches[0]) for size in sizes] + [(sizes[0], batch) for batch in batches[1:]]
        rows = measure(args.checkpoint, args.export, args.variant, cases, args.rounds)
        print(markdown(rows))
        if args.json:
            write_file(args.json, json.dumps({"variant": args.variant, "rows": rows}, indent=1) + "\n")

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
