"""Time whole edits on several backends, interleaved in one run, against eager PyTorch.

    python -m mrc.bench.latency CHECKPOINT --backends eager,onnxruntime --size 256 --steps 4 --rounds 5 \
        --json latency.json --plot latency.png

Each round runs every backend once, in turn; medians and ratios to eager are taken over rounds, so
that a slow moment of the machine meets all alike. Load time and peak memory come from a fresh
process a backend.
"""

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..engine import Engine
from ..engine.backends import BACKENDS
from ..engine.noise import generator
from ..errors import MRCError, run_command

PHASES = ("text", "encode", "condition", "step", "decode")
INSTRUCTION = "make it look like a snowy winter scene"


def photograph(size: int) -> np.ndarray:
    """A smooth random image `[size, size, 3]` uint8; latency does not depend on the picture."""
    coarse = generator(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size)))


def edit(engine: Engine, size: int, steps: int, output_type: str = "np"):
    return engine.edit(
        photograph(size), INSTRUCTION, num_inference_steps=steps, seed=0, resolution=0, output_type=output_type
    )


def phases(result) -> dict[str, float]:
    """Seconds by phase; "step" is the median denoising step."""
    timings = {name: result.timings[name] for name in PHASES if name in result.timings}
    return timings | {"step": median(result.step_seconds), "edit": sum(result.timings.values())}


def fresh_process(folder: str, backend: str, size: int, connection) -> None:
    """Body of a child: load, edit with one step, report seconds and peak memory."""
    start = time.perf_counter()
    engine = Engine.from_pretrained(folder, backend)
    loaded = time.perf_counter() - start
    edit(engine, size, steps=1)
    first = time.perf_counter() - start
    connection.send({"load_s": loaded, "first_edit_s": first, "peak_bytes": peak_memory()})


def peak_memory() -> int:
    """Greatest resident memory of this process in bytes (Linux; getrusage would count the parent's)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def cold_start(folder: Path, backend: str, size: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=fresh_process, args=(str(folder), backend, size, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise MRCError(f"backend {backend} died in a fresh process; see its message above") from None
    finally:
        child.join()


def psnr(found: np.ndarray, expected: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio in dB of images in 0…1; None where they are equal."""
    error = float(np.mean((found - expected) ** 2))
    return 10 * math.log10(1 / error) if error else None


def measure(folders: dict[str, Path], size: int, steps: int, rounds: int) -> dict[str, dict]:
    """Report by backend; ratios are eager's seconds over the backend's, round by round."""
    names = list(folders)
    report: dict[str, dict] = {}
    total = len(names) * (rounds + 3)
    with tqdm(total=total, desc="bench", unit="edit", disable=None) as bar:
        for name in names:
            report[name] = cold_start(folders[name], name, size)
            bar.update()
        engines = {name: Engine.from_pretrained(folders[name], name) for name in names}
        truth = None
        for name, engine in engines.items():  # warm-up, and fidelity at the same time
            latents = edit(engine, size, steps, "latent").images
            image = edit(engine, size, steps).images[0]
            truth = truth or (latents, image)
            error = np.linalg.norm(latents - truth[0]) / np.linalg.norm(truth[0])
            report[name] |= {"latents_relative_error": float(error), "psnr_db": psnr(image, truth[1])}
            bar.update(2)
        runs: dict[str, list[dict]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, engine in engines.items():
                runs[name].append(phases(edit(engine, size, steps)))
                bar.update()
    baseline = names[0]
    for name in names:
        report[name]["seconds"] = {key: median(run[key] for run in runs[name]) for key in runs[name][0]}
        for key in ("step", "edit"):
            ratios = [ours[key] for ours in runs[baseline]]
            ratios = [theirs / run[key] for theirs, run in zip(ratios, runs[name], strict=True)]
            report[name][f"{key}_speedup"] = {"median": median(ratios), "least": min(ratios), "greatest": max(ratios)}
        report[name]["rounds"] = runs[name]
    return report


def table(report: dict[str, dict]) -> str:
    head = ("backend", *PHASES, "edit", "speed-up", "load", "memory", "error", "PSNR")
    rows: list[tuple[str, ...]] = [head]
    for name, entry in report.items():
        seconds = [f"{entry['seconds'][phase] * 1e3:.1f} ms" for phase in (*PHASES, "edit")]
        decibels = "equal" if entry["psnr_db"] is None else f"{entry['psnr_db']:.1f} dB"
        rows.append(
            (name, *seconds, f"{entry['edit_speedup']['median']:.2f}×", f"{entry['load_s']:.1f} s",
             f"{entry['peak_bytes'] / 1e9:.2f} GB", f"{entry['latents_relative_error']:.1e}", decibels)
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def plot(report: dict[str, dict], title: str, path: Path) -> None:
    """Stacked bars: where the seconds of a median edit go."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.7 * len(report)), layout="constrained")
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
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.35), frameon=False)
    figure.savefig(path, dpi=150)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mrc.bench.latency", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--export", type=Path, help="its export folder; by default one is made and thrown away")
    parser.add_argument("--backends", default="eager,onnxruntime", help="the first is the baseline")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side, a multiple of 8")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the full report here")
    parser.add_argument("--plot", type=Path, help="draw the medians here")
    return parser


def run(args: argparse.Namespace) -> None:
    names = args.backends.split(",")
    if unknown := [name for name in names if name not in BACKENDS]:
        raise MRCError(f"backends {unknown} are unknown; choose from {', '.join(BACKENDS)}")
    if args.rounds < 1 or args.steps < 1 or args.size < 64:
        raise MRCError("--rounds and --steps are at least 1, --size at least 64")
    if names[0] != "eager":
        raise MRCError(f"--backends begins with {names[0]}; all is told against eager, so put that first")
    with tempfile.TemporaryDirectory() as scratch:
        exported = args.export
        if exported is None and any(BACKENDS[name].reads == "export" for name in names):
            from ..export.exporter import export

            exported = Path(scratch) / "export"
            export(args.model, exported)
        folders = {name: args.model if BACKENDS[name].reads == "checkpoint" else exported for name in names}
        report = measure(folders, args.size, args.steps, args.rounds)
    print(table(report))
    if args.json:
        settings = {"size": args.size, "steps": args.steps, "rounds": args.rounds}
        args.json.write_text(json.dumps({"settings": settings, "backends": report}, indent=1) + "\n")
    if args.plot:
        plot(report, f"{args.size}×{args.size}, {args.steps} steps", args.plot)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
