"""`mrc-convert checkpoint`: a checkpoint folder with pickled weights becomes one of safetensors.

Weights that are safetensors already are copied as they are; so are the settings. The new folder is loaded before it
takes its place, so every tensor of the model is there.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from ..core.errors import MRCError
from ..core.files import anything, nothing, replace_folder
from ..model.checkpoint import CHECKPOINT_FILES, check_is_checkpoint, load_checkpoint, write_weights
from ..model.weights import WEIGHTS, weight_files
from .pickles import read_pickle

PICKLED = {
    "unet": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.bin",
    "text_encoder": "pytorch_model.bin",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="checkpoint folder with .bin weights")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT whatever it holds (default: no)")
    parser.add_argument("--json", action="store_true", help="print what was dropped as JSON (default: no)")


def run(args: argparse.Namespace) -> None:
    dropped = convert_checkpoint(args.source, args.out, overwrite=args.overwrite)
    if args.json:
        print(json.dumps({"output": str(args.out), "dropped": dropped}))
        return
    for name in dropped:
        print(f"dropped {name}", file=sys.stderr)
    print(args.out)


def convert_checkpoint(source: Path, out: Path, *, overwrite: bool = False) -> list[str]:
    """Write `source` with safetensors only; returns the files and entries of pickles that are left out.

    Raises:
        MRCError: no checkpoint, weights that are missing, damaged or hold other objects than tensors, or an `out`
            that holds something.
    """
    check_is_checkpoint(source)
    with replace_folder(out, anything if overwrite else nothing) as folder:
        used, dropped = set(), []
        for name in CHECKPOINT_FILES:
            if (source / name).is_file() and not name.endswith(".safetensors"):
                copy(source / name, folder / name)
                used.add(source / name)
        for part in WEIGHTS:
            files, entries = convert_part(source, folder, part)
            used |= files
            dropped += entries
        try:
            load_checkpoint(folder)
        except MRCError as error:  # name the user's folder
            raise MRCError(str(error).replace(str(folder), str(source))) from None
    left = sorted(path for path in source.rglob("*") if path.is_file() and path not in used)
    return [str(path.relative_to(source)) for path in left] + dropped


def convert_part(source: Path, folder: Path, part: str) -> tuple[set[Path], list[str]]:
    """Write the weights of a part; returns the files that were read and the entries that are left out."""
    pickled = not list((source / part).glob("*.safetensors"))
    files = [path for path, _ in weight_files(source / part, PICKLED[part] if pickled else WEIGHTS[part])]
    if not pickled:
        for path in (source / part).glob("*.safetensors*"):
            copy(path, folder / part / path.name)
        return set((source / part).glob("*.safetensors*")), []
    tensors, dropped = {}, []
    for path in files:
        some, others = read_pickle(path)
        tensors |= some
        dropped += [f"{name} of {path.relative_to(source)}" for name in others]
    write_weights(tensors, folder / part / WEIGHTS[part])
    return {*files, *(source / part).glob("*.bin.index*.json")}, dropped


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
