"""`mrc-convert checkpoint`: a checkpoint in any layout, pickled ones too, becomes a folder of safetensors.

The weights keep their number format where all have the same; otherwise they become float32, which loses nothing.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from ..core.files import anything, nothing
from ..core.layout import LAYOUT
from ..core.paths import snapshot
from ..model.checkpoint import load_source, save_checkpoint
from ..model.single_file import tensors_source
from ..model.source import Source, folder_source
from ..model.weights import WEIGHTS, State, cast, read_tensors, weight_files
from .pickles import read_pickle

PICKLED = {
    "unet": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.bin",
    "text_encoder": "pytorch_model.bin",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="checkpoint folder with .bin weights, or one .ckpt or .safetensors")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument("--base", type=Path, help=f"{LAYOUT['base'].replace('.safetensors ', '')} (default: none)")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights of a single file (default: no)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT whatever it holds (default: no)")
    parser.add_argument("--json", action="store_true", help="print what was dropped as JSON (default: no)")


def run(args: argparse.Namespace) -> None:
    dropped = convert_checkpoint(args.source, args.out, base=args.base, ema=args.ema, overwrite=args.overwrite)
    if args.json:
        print(json.dumps({"output": str(args.out), "dropped": dropped}))
        return
    for name in dropped:
        print(f"dropped {name}", file=sys.stderr)
    print(args.out)


def convert_checkpoint(
    model: Path, out: Path, *, base: Path | None = None, ema: bool = False, overwrite: bool = False
) -> list[str]:
    """Write the checkpoint `model` as a folder of safetensors.

    Args:
        base: of a single file, as in `load_checkpoint`.
        ema: take the averaged weights of the U-Net, which a single file may have too.

    Returns:
        The files of the folder and the entries of pickles that are left out.

    Raises:
        MRCError: no checkpoint; weights that are missing, damaged or hold other objects than tensors; an `out` that
            holds something.
    """
    model = snapshot(model)
    if model.is_file():
        tensors, dropped = read_file(model)
        source, dtype = tensors_source(tensors, model, base, ema), common_dtype(tensors.values())
    else:
        states, used, dropped = read_parts(model)
        source = with_states(folder_source(model), states)
        dtype = common_dtype(value for state in states.values() for value in state.values())
        settings = {"model_index.json", "defaults.json", *(f"{part}/config.json" for part in WEIGHTS)}
        dropped += unused(model, used, settings)
    save_checkpoint(load_source(source, dtype), out, anything if overwrite else nothing)
    return dropped


def read_file(path: Path) -> tuple[State, list[str]]:
    return (read_tensors(path), []) if path.suffix == ".safetensors" else read_pickle(path)


def read_parts(model: Path) -> tuple[dict[str, State], set[Path], list[str]]:
    """The tensors of all parts of a folder, the files they are in, and the entries that are no tensors."""
    states: dict[str, State] = {}
    used: set[Path] = set()
    dropped: list[str] = []
    for part, name in WEIGHTS.items():
        pickled = not any((model / part).glob("*.safetensors"))
        states[part] = {}
        for path, _ in weight_files(model / part, PICKLED[part] if pickled else name):
            tensors, others = read_file(path)
            states[part] |= tensors
            used.add(path)
            dropped += [f"{entry} of {path.relative_to(model)}" for entry in others]
    return states, used, dropped


def with_states(source: Source, states: dict[str, State]) -> Source:
    def weights(part: str, dtype: torch.dtype) -> State:
        return {name: cast(name, value, dtype, source.place(part)) for name, value in states[part].items()}

    return replace(source, weights=weights)


def common_dtype(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """The number format of all weights, or float32 where they have several."""
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return kinds.pop() if kinds in ({torch.float16}, {torch.bfloat16}) else torch.float32


def unused(model: Path, used: set[Path], settings: set[str]) -> list[str]:
    """Files of the folder that are neither weights that were read nor settings."""
    names = {path.relative_to(model).as_posix(): path for path in model.rglob("*") if path.is_file()}
    kept = ("tokenizer/", "scheduler/")
    return sorted(
        name
        for name, path in names.items()
        if path not in used and name not in settings and not name.startswith(kept) and ".index." not in name
    )
