"""`mrc-export`: a checkpoint folder becomes an export folder."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ..core.adapters import parse_embeddings, parse_loras
from ..core.console import command_parser
from ..core.errors import MRCError, run_command
from ..core.layout import add_layout_options, layout_options
from ..core.precision import PRECISIONS
from ..engine.manifest import Manifest, files_of, read_manifest
from ..engine.shipped import shipped
from .options import add_options
from .triton import check_free, write_repository


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("mrc-export", "Export a checkpoint to ONNX graphs and, with --trt, to TensorRT engines.")
    parser.add_argument(
        "checkpoint", help="checkpoint: folder, .safetensors file, mini, or OWNER/NAME on the Hugging Face hub"
    )
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        help="export folder to write; an older export there is replaced at the end. Leave it out to write the "
        "--triton-repository of an existing export: CHECKPOINT is then that export",
    )
    parser.add_argument(
        "--dtype", choices=PRECISIONS, default="float32", help="precision inside the graphs (default: float32)"
    )
    add_layout_options(parser)
    add_options(parser)
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
    repository = args.triton_repository
    out = args.out or exported(args)
    if repository:
        check_free(repository, args.overwrite, out, Path(args.checkpoint))
    manifest = new_export(args) if args.out else read_manifest(out)
    if repository:
        write_repository(out, repository, args.overwrite)
    for warning in manifest.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(asdict(manifest)) if args.json else table(out, manifest))


def exported(args: argparse.Namespace) -> Path:
    """The export that is there already, where no folder to write is given.

    Raises:
        MRCError: no repository is asked for, or flags are given that only a new export can follow.
    """
    if not args.triton_repository:
        raise MRCError("OUT is missing; give the folder that the export is to be written to")
    usual = vars(arguments().parse_args([args.checkpoint]))
    own = {"triton_repository", "overwrite", "json"}
    if given := [name for name, value in vars(args).items() if name not in own and value != usual[name]]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise MRCError(f"{flags}: no export is made without OUT; give OUT too, or leave out these flags")
    return shipped(args.checkpoint, "onnxruntime")


def new_export(args: argparse.Namespace) -> Manifest:
    try:
        from .exporter import export as export_folder
    except ImportError as error:
        raise MRCError(f"exporting needs {error.name}; pip install 'mrc-edit[export,cpu]'") from None
    return export_folder(
        args.checkpoint,
        args.out,
        dtype=args.dtype,
        opset=args.opset,
        trt=args.trt,
        trt_targets=args.trt_target,
        int8=args.int8,
        precision_report=args.precision_report,
        sizes=(args.min_size, args.opt_size, args.max_size),
        max_batch=args.max_batch,
        lora=parse_loras(args.lora),
        embeddings=parse_embeddings(args.embedding),
        overwrite=args.overwrite,
        **layout_options(args),
    )


def main() -> None:
    args = arguments().parse_args()
    sys.exit(run_command(lambda: export(args)))


if __name__ == "__main__":
    main()
