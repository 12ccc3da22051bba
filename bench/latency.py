"""Time whole edits of several variants, interleaved in one run, against eager PyTorch.

    python -m mrc_edit.bench.latency CHECKPOINT --variants eager,onnxruntime --size 256 --steps 4 --rounds 5 \
        --json latency.json --plot latency.png

A variant is `backend:precision:tier`, of which the last two may be left out, or one of `bench.peers`. Each
has a process of its own, which holds its engine; a round runs each once, in turn, and medians and ratios
are taken over rounds, so that a slow moment of the machine meets all alike.
"""

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..core.errors import MRCError, run_command
from ..core.tables import Table
from ..engine import Engine
from ..engine.backends import BACKENDS
from ..engine.noise import generator

PHASES = ("text", "encode", "condition", "step", "decode")
INSTRUCTION = "make it look like a snowy winter scene"
PEERS = (
    "eager:bfloat16", "compile:bfloat16", "plain-onnxruntime", "plain-openvino:float32", "plain-openvino:bfloat16",
)  # fmt: skip


def photograph(size: int) -> np.ndarray:
    """A smooth random image `[size, size, 3]` uint8; latency does not depend on the picture."""
    coarse = generator(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size)))


def edit(engine: Engine, size: int, steps: int, output_type: str = "np", batch: int = 1, callback: Any = None):
    return engine.edit(
        [photograph(size)] * batch, INSTRUCTION, num_inference_steps=steps, seed=0, resolution=0,
        output_type=output_type, callback_on_step_end=callback,
    )  # fmt: skip


def phases(result: Any, wall: float) -> dict[str, float]:
    """Seconds by phase; "step" is the mean denoising step, "parts" what the phases add up to."""
    timings = {name: result.timings[name] for name in PHASES if name in result.timings}
    step = fmean(result.step_seconds)
    parts = sum(timings.values()) + median(result.step_seconds) * len(result.step_seconds)
    return timings | {"step": step, "edit": wall, "parts": parts}


def open_engine(variant: str, checkpoint: Path, exported: Path | None, plain: Path) -> Engine:
    if variant in PEERS:
        from .peers import PEERS as makers

        return Engine(makers[variant](checkpoint, plain))
    backend, precision, tier = (*variant.split(":"), "", "")[:3]
    folder = checkpoint if BACKENDS[backend].reads == "checkpoint" else exported
    assert folder is not None
    return Engine.from_pretrained(folder, backend, precision=precision or None, tier=tier or "exact")


def serve(variant: str, folders: tuple, size: int, connection: Any) -> None:
    """Body of a child: load, edit once, report, then edit as often as it is asked."""
    start = time.perf_counter()
    private, edited = [0], threading.Event()
    threading.Thread(target=watch, args=(private, edited), daemon=True).start()
    try:
        engine = open_engine(variant, *folders)
        loaded = time.perf_counter() - start
        edit(engine, size, 1)
        first = time.perf_counter() - start
        edited.set()
        peaks = {"peak_bytes": memory("VmHWM"), "peak_private_bytes": private[0]}
        connection.send({"load_s": loaded, "first_edit_s": first, **peaks})
        last = {}
        while asked := connection.recv():
            start = time.perf_counter()
            result = edit(engine, **asked, callback=lambda engine, step, timestep, now: last.update(now))
            wall = time.perf_counter() - start
            connection.send((last["latents"], result.images[0], phases(result, wall)))
    except MRCError as error:
        connection.send(error)


def memory(field: str) -> int:
    """A memory figure of this process in bytes (Linux; getrusage would count the parent's)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def watch(private: list[int], done: threading.Event) -> None:
    """Keep the greatest memory that is no mapped file, which the system can take back, up to date."""
    while not done.wait(0.02):
        private[0] = max(private[0], memory("RssAnon"))


class Variant:
    """A child process that holds one engine."""

    def __init__(self, name: str, folders: tuple, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(name, folders, size, other), daemon=True)
        self.process.start()
        other.close()
        self.start = self.receive()

    def receive(self) -> Any:
        try:
            found = self.pipe.recv()
        except EOFError:
            raise MRCError(f"{self.name} died in its process; see its message above") from None
        if isinstance(found, MRCError):
            raise found
        return found

    def edit(self, **asked: Any) -> Any:
        self.pipe.send(asked)
        return self.receive()

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def psnr(found: np.ndarray, expected: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio in dB of images in 0…1; None where they are equal."""
    error = float(np.mean((found - expected) ** 2))
    return 10 * math.log10(1 / error) if error else None


def measure(names: list[str], folders: tuple, size: int, steps: int, rounds: int) -> dict[str, dict]:
    """Report by variant; ratios are the first one's seconds over each one's, round by round."""
    report: dict[str, dict] = {}
    with ExitStack() as stack, tqdm(total=len(names) * (rounds + 2), desc="bench", unit="edit", disable=None) as bar:
        variants = []
        for name in names:
            variants.append(Variant(name, folders, size))
            stack.callback(variants[-1].close)
            report[name] = dict(variants[-1].start)
            bar.update()
        truth = None
        for variant in variants:  # warm-up, and fidelity at the same time
            latents, image, _ = variant.edit(size=size, steps=steps)
            truth = truth or (latents, image)
            error = np.linalg.norm(latents - truth[0]) / np.linalg.norm(truth[0])
            report[variant.name] |= {"latents_relative_error": float(error), "psnr_db": psnr(image, truth[1])}
            bar.update()
        runs: dict[str, list[dict]] = {name: [] for name in names}
        for _ in range(rounds):
            for variant in variants:
                runs[variant.name].append(variant.edit(size=size, steps=steps)[2])
                bar.update()
    for name in names:
        report[name]["seconds"] = {key: median(run[key] for run in runs[name]) for key in runs[name][0]}
        report[name]["edit_over_parts"] = median(run["edit"] / run["parts"] for run in runs[name])
        for key in ("step", "edit"):
            ratios = [first[key] / run[key] for first, run in zip(runs[names[0]], runs[name], strict=True)]
            report[name][f"{key}_speedup"] = {"median": median(ratios), "least": min(ratios), "greatest": max(ratios)}
        report[name]["rounds"] = runs[name]
    return report


def markdown(report: dict[str, dict]) -> str:
    head = [
        "variant",
        "step",
        "against eager",
        "edit",
        "against eager",
        "load",
        "first edit",
        "memory",
        "error",
        "PSNR",
    ]
    rows = [
        [
            name,
            f"{entry['seconds']['step'] * 1e3:.0f} ms",
            f"{entry['step_speedup']['median']:.2f}×",
            f"{entry['seconds']['edit']:.2f} s",
            f"{entry['edit_speedup']['median']:.2f}×",
            f"{entry['load_s']:.1f} s",
            f"{entry['first_edit_s']:.1f} s",
            f"{entry['peak_private_bytes'] / 1e9:.2f} GB",
            f"{entry['latents_relative_error']:.1e}",
            "equal" if entry["psnr_db"] is None else f"{entry['psnr_db']:.1f} dB",
        ]
        for name, entry in report.items()
    ]
    return Table("", head, rows).markdown()


def plot(report: dict[str, dict], title: str, path: Path) -> None:
    """Stacked bars: where the seconds of a median edit go."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.5 * len(report)), layout="constrained")
    for y, entry in enumerate(report.values()):
        left = 0.0
        parts = {phase: entry["seconds"][phase] for phase in ("text", "encode", "condition")}
        rest = entry["seconds"]["edit"] - sum(parts.values()) - entry["seconds"]["decode"]
        parts |= {"steps": rest, "decode": entry["seconds"]["decode"]}
        for colour, (phase, seconds) in enumerate(parts.items()):
            axes.barh(y, seconds, left=left, color=f"C{colour}", label=phase if y == 0 else None)
            left += seconds
        axes.text(left, y, f" {entry['edit_speedup']['median']:.2f}×", va="center")
    axes.set_yticks(range(len(report)), list(report))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds an edit (median)")
    axes.set_title(title)
    figure.legend(ncols=5, loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=150)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mrc_edit.bench.latency", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--export", type=Path, help="its export folder; by default one is made and thrown away")
    parser.add_argument(
        "--variants",
        default="eager,onnxruntime",
        help=f"backend:precision:tier, the first is the baseline; or {', '.join(PEERS)}",
    )
    parser.add_argument("--size", type=int, default=256, help="pixels of a side, a multiple of 64")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the full report here")
    parser.add_argument("--plot", type=Path, help="draw the medians here")
    return parser


def run(args: argparse.Namespace) -> None:
    names = args.variants.split(",")
    if unknown := [name for name in names if name not in PEERS and name.split(":")[0] not in BACKENDS]:
        raise MRCError(f"variants {unknown} are unknown; choose from {', '.join((*BACKENDS, *PEERS))}")
    if args.rounds < 1 or args.steps < 1 or args.size < 64:
        raise MRCError("--rounds and --steps are at least 1, --size at least 64")
    if names[0] != "eager":
        raise MRCError(f"--variants begins with {names[0]}; all is told against eager, so put that first")
    with tempfile.TemporaryDirectory() as scratch:
        exported, plain = args.export, Path(scratch) / "plain.onnx"
        reads = [BACKENDS[name.split(":")[0]].reads for name in names if name not in PEERS]
        if exported is None and "export" in reads:
            from ..export.exporter import export

            exported = Path(scratch) / "export"
            export(args.model, exported)
        if any(name.startswith("plain-") for name in names):
            from .peers import plain_export

            plain_export(args.model, plain)
        report = measure(names, (args.model, exported, plain), args.size, args.steps, args.rounds)
    print(markdown(report))
    if args.json:
        settings = {"size": args.size, "steps": args.steps, "rounds": args.rounds}
        args.json.write_text(json.dumps({"settings": settings, "variants": report}, indent=1) + "\n")
    if args.plot:
        plot(report, f"{args.size}×{args.size}, {args.steps} steps", args.plot)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
