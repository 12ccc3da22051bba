"""Time whole edits of several variants, interleaved in one run.

    python bench/latency.py CHECKPOINT --variants eager,onnxruntime --size 256 --steps 4 --rounds 5 \
        --json latency.json --plot latency.png

A variant is `backend:precision:tier`, where precision and tier may be left out, or one of `bench/peers.py`. Each has
a process of its own; a round runs each once, in turn, and medians and ratios are taken over rounds, so that a slow
moment of the machine slows all of them. Speed and error are relative to the first variant. An export edits without
PyTorch: with an export as MODEL and only its backends as variants, no process imports it.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from mrc_edit.bench.machine import limited_threads
from mrc_edit.bench.options import add_sampler_options, command_parser, require_at_least
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.bench.slowdown import check_slowdown, read_earlier
from mrc_edit.bench.timed_edits import time_variants
from mrc_edit.bench.workload import PEERS, Variant, Workload, check_names, parse_variant
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.core.figures import new_figure, write_figure
from mrc_edit.engine.backends import BACKENDS
from mrc_edit.engine.manifest import NAME as MANIFEST
from mrc_edit.engine.models import model_folder


def columns(first: str) -> list[Column]:
    """Columns of a report whose baseline is the variant `first`."""
    return [
        Column("variant", "{variant}"),
        Column("step", "{step_ms:.0f} ms"),
        *(Column(f"step {name}", f"{{step_{name}_ms:.0f}} ms") for name in ("p50", "p90", "p99")),
        Column(f"against {first}", "{step_speedup:.2f}×"),
        Column("of product", "{product_percent:.0f} %"),
        Column("of copy", "{copy_percent:.0f} %"),
        Column("edit", "{edit_ms:.0f} ms"),
        *(Column(f"edit {name}", f"{{edit_{name}_ms:.0f}} ms") for name in ("p50", "p90", "p99")),
        Column(f"against {first}", "{edit_speedup:.2f}×"),
        Column("load", "{load_s:.1f} s"),
        Column("first edit", "{first_edit_s:.1f} s"),
        Column("memory", "{memory_gb:.2f} GB"),
        Column(f"error relative to {first}", "{latents_relative_error:.1e}"),
        Column(f"PSNR to {first}", "{psnr_db:.1f} dB", missing="equal"),
    ]


def rows(report: dict) -> list[Row]:
    """One row a variant: medians, percentiles and ratios in milliseconds, per cent and gigabytes."""
    table_rows: list[Row] = []
    for name, entry in report["variants"].items():
        row: dict[str, str | float | None] = {"variant": name}
        for key in ("step", "edit"):
            row[f"{key}_ms"] = 1e3 * entry["seconds"][key]
            row |= {f"{key}_{percentile}_ms": 1e3 * value for percentile, value in entry["percentiles"][key].items()}
            row[f"{key}_speedup"] = entry[f"{key}_speedup"]["median"]
        for key in ("product", "copy"):
            share = entry[f"{key}_share"]
            row[f"{key}_percent"] = None if share is None else 100 * share
        row["memory_gb"] = entry["peak_private_bytes"] / 1e9
        row |= {key: entry[key] for key in ("load_s", "first_edit_s", "latents_relative_error", "psnr_db")}
        table_rows.append(row)
    return table_rows


def notes(report: dict) -> str:
    """What the shares are of, and the machine."""
    limits = {name: f"{limit / 1e9:.1f}" for name, limit in report["limits"].items()}
    products = ", ".join(f"{name} {limit} GFLOP/s" for name, limit in limits.items() if name != "copy")
    machine = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        "`step`: median over rounds of an edit's mean step; percentiles: of single steps and edits.",
        f"Limits measured in this run: large matrix products {products}; copy {limits['copy']} GB/s. `of product` is a "
        "step's operations a second over a product's in its precision, `of copy` the bytes of its weights a second "
        "over a copy's.",
        report["work"]["note"],
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores; {packages}; {machine['date']}",
    ]
    return "\n".join(line for line in lines if line)


def plot(report: dict, title: str, path: Path) -> None:
    """Stacked bars: where the seconds of a median edit go."""
    entries = report["variants"]
    figure = new_figure(7, 1.2 + 0.5 * len(entries))
    axes = figure.subplots()
    for y, entry in enumerate(entries.values()):
        left = 0.0
        parts = {phase: entry["seconds"][phase] for phase in ("text", "encode", "condition")}
        rest = entry["seconds"]["edit"] - sum(parts.values()) - entry["seconds"]["decode"]
        parts |= {"steps": rest, "decode": entry["seconds"]["decode"]}
        for colour, (phase, seconds) in enumerate(parts.items()):
            axes.barh(y, seconds, left=left, color=f"C{colour}", label=phase if y == 0 else None)
            left += seconds
        axes.text(left, y, f" {entry['edit_speedup']['median']:.2f}×", va="center")
    axes.set_yticks(range(len(entries)), list(entries))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds an edit (median)")
    axes.set_title(title)
    figure.legend(ncols=5, loc="outside lower center", frameon=False)
    write_figure(path, figure, dpi=150)


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("model", help="checkpoint or export folder, mini, or OWNER/NAME on the Hugging Face hub")
    parser.add_argument("--export", type=Path, help="export of the checkpoint; by default one is made and deleted")
    parser.add_argument(
        "--variants",
        help="backend:precision:tier, separated by commas, the first is the baseline (default eager,onnxruntime, of an "
        f"export onnxruntime); or {', '.join(PEERS)}",
    )
    parser.add_argument("--size", type=int, default=256, help="pixels of a side, a multiple of 64 (default 256)")
    parser.add_argument("--batch", type=int, default=1, help="images an edit (default 1)")
    add_sampler_options(parser, 4, "euler_ancestral", 7.5, 1.5)
    parser.add_argument("--warmup", type=int, default=1, help="untimed edits of each variant, from 1 (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="timed edits of each variant (default 5)")
    parser.add_argument(
        "--threads", type=int, help="cores that every process may use, with as many threads, on Linux (default all)"
    )
    parser.add_argument("--device", default="", help="cpu or cuda, for PyTorch (default: the GPU, where there is one)")
    parser.add_argument(
        "--provider", default="", help="execution provider of the onnxruntime variants (default ONNX Runtime's first)"
    )
    add_output_options(parser, plot="draw the medians here (default none)")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="report of an earlier --json: exit with status 1 if a step or an edit became slower. With several "
        "variants their medians relative to the first are compared, so that a slow moment of the machine cancels; "
        "with one, its median seconds (default none)",
    )
    parser.add_argument("--tolerance", type=float, default=1.1, help="slowdown that --check allows (default 1.1)")
    return parser


def checked(args: argparse.Namespace) -> list[str]:
    """Names of the variants.

    Raises:
        MRCError: an option that cannot be used.
    """
    require_at_least(args, size=64, batch=1, steps=1, warmup=1, rounds=1)
    exported = (model_folder(args.model, "eager") / MANIFEST).is_file()
    names = (args.variants or ("onnxruntime" if exported else "eager,onnxruntime")).split(",")
    check_names(names)
    if len(set(names)) < len(names):
        raise MRCError(f"--variants is {args.variants}; name each variant once")
    if args.provider and not any(name.split(":")[0] == "onnxruntime" for name in names):
        raise MRCError(f"--provider is {args.provider} and no variant is onnxruntime, which alone has providers")
    if args.device and not any(name in PEERS or "device" in BACKENDS[name.split(":")[0]].options for name in names):
        raise MRCError(f"--device is {args.device} and PyTorch computes no variant; leave it out")
    return names


def prepare(args: argparse.Namespace, names: list[str], scratch: Path) -> list[Variant]:
    """The variants, after making the exports in `scratch` that they need and that were not given."""
    exported, graph = args.export, scratch / "plain.onnx"
    checkpoint = model_folder(args.model, "eager")
    variants = [parse_variant(name, args.model, exported, args.provider, graph, args.device) for name in names]
    if exported is None and any(
        BACKENDS[variant.backend].reads == "export" and not (variant.folder / MANIFEST).is_file()
        for variant in variants
    ):
        from mrc_edit.export.exporter import export

        export(checkpoint, scratch / "export")
        exported = scratch / "export"
        variants = [parse_variant(name, args.model, exported, args.provider, graph, args.device) for name in names]
    if any(name.startswith("plain-") for name in names):
        from mrc_edit.bench.peers import plain_export

        plain_export(checkpoint, graph)
    return variants


def run(args: argparse.Namespace) -> None:
    names = checked(args)
    workload = Workload(args.size, args.steps, args.batch, args.scheduler, args.guidance, args.image_guidance)
    own = ("threads", "device", "provider", "warmup", "rounds")
    settings = asdict(workload) | {key: getattr(args, key) for key in own}
    earlier = read_earlier(args.check, names, settings) if args.check else None
    checkpoint = model_folder(args.model, "eager")
    countable = checkpoint if (checkpoint / "model_index.json").is_file() else None
    with tempfile.TemporaryDirectory() as scratch, limited_threads(args.threads):
        variants = prepare(args, names, Path(scratch))
        measured = time_variants(variants, workload, args.rounds, args.warmup, countable)
    medians = rows(measured)
    report = {"settings": settings} | measured | {"rows": medians}
    print(table(columns(names[0]), medians, note=notes(report)).markdown())
    write_report(args, report, medians)
    if args.plot:
        plot(report, f"{args.size}×{args.size}, {args.steps} steps", args.plot)
    if earlier:
        check_slowdown(report, earlier, args.tolerance)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
