"""Training throughput and memory, and what caching latents gains.

    python -m mrc_edit.bench.training CHECKPOINT --resolution 256 --batch-size 4 --steps 4 --rounds 3

Each round trains once with pictures encoded in every step and once from cached latents, each in a
fresh process, in turn.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from statistics import median

from tqdm import tqdm

from ..core.errors import MRCError, run_command
from ..train.config import TrainConfig
from .latency import memory

MODES = ("pictures", "cached")


def fresh_run(settings: dict, connection) -> None:
    """Body of a child: train, report images a second without the first step, and peak memory."""
    from ..train.loop import train
    from ..train.state import list_states

    config = TrainConfig(**settings)
    train(config)
    curve = json.loads((list_states(Path(config.out))[-1] / "state.json").read_text())["curve"]
    seconds = sum(row[2] for row in curve[1:])
    connection.send({"images_per_s": config.batch_size * (len(curve) - 1) / seconds, "peak_bytes": memory("VmHWM")})


def measure(settings: dict, rounds: int) -> dict[str, dict]:
    """Median images a second and peak memory by mode, and the ratio round by round."""
    found: dict[str, list[dict]] = {mode: [] for mode in MODES}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2 * rounds, desc="bench", unit="run", disable=None) as bar:
        for number in range(rounds):
            for mode in MODES:
                cache = f"{folder}/cache" if mode == "cached" else None
                receiver, sender = context.Pipe(duplex=False)
                run = settings | {"out": f"{folder}/{mode}-{number}", "cache": cache}
                child = context.Process(target=fresh_run, args=(run, sender))
                child.start()
                sender.close()
                try:
                    found[mode].append(receiver.recv())
                except EOFError:
                    raise MRCError("a training run died; see its message above") from None
                finally:
                    child.join()
                bar.update()
    report: dict[str, dict] = {
        mode: {key: median(run[key] for run in runs) for key in runs[0]} for mode, runs in found.items()
    }
    ratios = [c["images_per_s"] / p["images_per_s"] for p, c in zip(found["pictures"], found["cached"], strict=True)]
    report["caching_gains"] = {"median": median(ratios), "least": min(ratios), "greatest": max(ratios)}
    return report


def markdown(report: dict[str, dict]) -> str:
    lines = ["| batches from | images/s | peak memory |", "| --- | --- | --- |"]
    lines += [f"| {m} | {report[m]['images_per_s']:.2f} | {report[m]['peak_bytes'] / 1e9:.1f} GB |" for m in MODES]
    gain = report["caching_gains"]
    return "\n".join([*lines, f"caching gains {gain['median']:.2f}× ({gain['least']:.2f}–{gain['greatest']:.2f})"])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mrc_edit.bench.training", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--mixed-precision", default="no")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    def run() -> None:
        if args.steps < 2 or args.rounds < 1:
            raise MRCError(f"--steps is {args.steps}, --rounds {args.rounds}; give at least 2 and 1")
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
        report = measure(settings, args.rounds)
        print(markdown(report))
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
