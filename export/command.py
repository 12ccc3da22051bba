"""`mrc-export`: a checkpoint folder becomes an export folder."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ..core.errors import MRCError, run_command
from ..core.precision import PRECISIONS
from ..engine.manifest import Manifest, files_of


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mrc-export", description="Export a checkpoint to ONNX graphs and, with --trt, to TensorRT engines."
    )
    parser.add_argument("checkpoint", type=Path, help="MRC or InstructPix2Pix checkpoint folder")
    parser.add_argument("out", type=Path, help="export folder to write; an older export there is replaced at the end")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT whatever it holds")
    parser.add_argument(
        "--dtype", choices=PRECISIONS, default="float32", help="precision inside the graphs (default: float32)"
    )
    parser.add_argument(
        "--int8", type=Path, metavar="PICTURES", help="also write int8 step graphs, calibrated on edits of this folder"
    )
    parser.add_argument("--trt", action="store_true", help="also build a TensorRT engine for every graph")
    parser.add_argument(
        "--trt-target",
        type=lambda text: text.split(","),
        metavar="SM,…",
        help="GPUs to build for, such as sm86,sm89 (default: all, or the one here with data-centre TensorRT)",
    )
    for name, size in (
        ("min", "half of --opt-size"),
        ("opt", "the model's resolution"),
        ("max", "--opt-size and half"),
    ):
        parser.add_argument(f"--{name}-size", type=int, help=f"pixels of a side, for --trt (default: {size})")
    parser.add_argument("--max-batch", type=int, default=1, help="images a pass, for --trt")
    parser.add_argument("--json", action="store_true", help="print the manifest instead of the table")
    return parser


def table(folder: Path, manifest: Manifest) -> str:
    """One line a graph: precision, size on disk, difference from eager."""
    lines = [f"{'graph':16}{'runtime':14}{'precision':11}{'size':>10}  difference from eager"]
    for artifact in manifest.artifacts:
        files = files_of(manifest, artifact) if artifact.runtime == "onnx" else [artifact.path]
        size = sum((folder / name).stat().st_size for name in files) / 1e6
        difference = "-" if artifact.difference is None else f"{artifact.difference:.1e}"
        lines.append(f"{artifact.role:16}{artifact.runtime:14}{artifact.precision:11}{size:7.1f} MB  {difference}")
    return "\n".join(lines)


def export(args: argparse.Namespace) -> None:
    try:
        from .exporter import export as export_folder
    except ImportError as error:
        raise MRCError(f"exporting needs {error.name}; pip install 'mrc-edit[export,cpu]'") from None
    manifest = export_folder(
        args.checkpoint,
        args.out,
        dtype=args.dtype,
        trt=args.trt,
        trt_targets=args.trt_target,
        int8=args.int8,
        sizes=(args.min_size, args.opt_size, args.max_size),
        max_batch=args.max_batch,
        overwrite=args.overwrite,
    )
    for warning in manifest.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(asdict(manifest)) if args.json else table(args.out, manifest))


def main() -> None:
    args = arguments().parse_args()
    sys.exit(run_command(lambda: export(args)))


if __name__ == "__main__":
    main()
