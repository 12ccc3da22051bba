"""The weights of a checkpoint's parts: safetensors only, whole, in shards or of one variant; strict on every tensor."""

import re
import warnings
from pathlib import Path
from typing import NoReturn, TypeVar

import safetensors.torch
import torch

from ..core.errors import MRCError
from ..core.files import read_json

Module = TypeVar("Module", bound=torch.nn.Module)
State = dict[str, torch.Tensor]

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
OTHER_WEIGHTS = "model.safetensors"  # of parts that only some models have
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD = re.compile(r"-\d+-of-\d+")
DAMAGED = "it is truncated or damaged, copy it again"
VAE_OLD_KEYS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_weights(checkpoint: Path, part: str, dtype: torch.dtype, variant: str | None = None) -> State:
    """Tensors of `checkpoint/part`, floating point ones as `dtype`; as `read_folder`."""
    return read_folder(checkpoint / part, WEIGHTS.get(part, OTHER_WEIGHTS), dtype, variant)


def read_folder(folder: Path, name: str, dtype: torch.dtype, variant: str | None = None) -> State:
    """Tensors of the weights `name` in a folder, floating point ones as `dtype`; `variant` as in `weight_files`.

    Raises:
        MRCError: no weights, pickled or damaged ones, or values that are not finite as `dtype`.
    """
    state: State = {}
    for path, keys in weight_files(folder, name, variant):
        tensors = read_tensors(path)
        if keys is not None and (missing := sorted(keys - tensors.keys())):
            raise MRCError(f"{path} lacks {missing[0]}, which the index says it has; copy all shards again")
        state |= {key: cast(key, value, dtype, path) for key, value in tensors.items()}
    return state


def read_tensors(path: Path) -> State:
    """The tensors of a safetensors file, mapped: what is not used is not read.

    Raises:
        MRCError: it is truncated or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # safetensors' own, and many of torch for types that it does not know
        raise MRCError(f"{path} cannot be read ({error}); {DAMAGED}") from None


def cast(key: str, value: torch.Tensor, dtype: torch.dtype, path: Path) -> torch.Tensor:
    """A tensor of `path` as `dtype`, if it is floating point.

    Raises:
        MRCError: it then holds values that are not finite.
    """
    if not value.is_floating_point():
        return value
    value = value.to(dtype)
    # the sum, which is read at the speed of the memory, is finite unless a value is not, or many are huge
    if not value.sum(dtype=torch.float32).isfinite() and not value.isfinite().all():
        name = str(dtype).removeprefix("torch.")
        raise MRCError(f"{path}: tensor {key} holds NaN or infinity as {name}; restore it from the original checkpoint")
    return value


def weight_files(folder: Path, name: str, variant: str | None = None) -> list[tuple[Path, set[str] | None]]:
    """The files that hold a part's weights, and the tensors that an index promises of each.

    Args:
        name: of the file where it is one; its shards have an index beside them.
        variant: such as fp16, of `model.fp16.safetensors`. By default the plain weights, or else the only variant.

    Raises:
        MRCError: there are none, another variant, or pickled ones alone; an index that names no file beside it.
    """
    found = variants(folder, name)
    if variant is not None and variant not in found:
        there = ", ".join(sorted(each or "the plain weights" for each in found)) or "no weights"
        raise MRCError(f"{folder} has no variant {variant!r} of {name}, it has {there}; choose among these")
    if variant is None and "" not in found and len(found) > 1:
        raise MRCError(f"{folder} has the variants {', '.join(sorted(found))} and no {name}; choose one (--variant)")
    if not found:
        refuse_missing(folder, name)
    path = found[variant if variant is not None else "" if "" in found else next(iter(found))]
    return shards(path, Path(name).suffix) if path.suffix == ".json" else [(path, None)]


def variant_or_plain(folder: Path, name: str, variant: str | None) -> str | None:
    """`variant` where the folder has it, else None with a warning where it has plain weights, as in diffusers."""
    if variant is None or variant in (found := variants(folder, name)) or "" not in found:
        return variant
    warnings.warn(f"{folder} has no variant {variant!r} of {name}; its plain weights are used", stacklevel=2)
    return None


def variants(folder: Path, name: str) -> dict[str, Path]:
    """The file or the index of each variant of the weights `name`; "" is the plain one."""
    stem, ending = Path(name).stem, Path(name).suffix
    found = {}
    for pattern in (rf"{name}\.index(?:\.([\w-]+))?\.json", rf"{stem}(?:\.([\w-]+))?{ending}"):  # a file goes first
        for path in folder.glob(f"{stem}*"):
            if (match := re.fullmatch(pattern, path.name)) and path.is_file() and not SHARD.search(path.name):
                found[match[1] or ""] = path
    return found


def refuse_missing(folder: Path, name: str) -> NoReturn:
    if pickles := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
        raise MRCError(
            f"{folder} holds pickled weights {pickles}, which can run code and are never loaded; "
            f"convert them to safetensors: mrc-convert checkpoint {folder.parent} OUT"
        )
    raise MRCError(f"{folder / name} is missing; the checkpoint folder is incomplete")


def shards(index: Path, ending: str) -> list[tuple[Path, set[str] | None]]:
    """The files of an index, `{"weight_map": {tensor: file}}`."""
    remedy = "copy the index and all shards again"
    files: dict[str, set[str]] = {}
    places = read_json(index, remedy).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise MRCError(f"{index} has no weight_map; {remedy}")
    for key, file in places.items():
        if not isinstance(file, str) or file != Path(file).name or not file.endswith(ending):
            raise MRCError(f"{index} names {file!r}, which is no {ending} file beside it; {remedy}")
        files.setdefault(file, set()).add(key)
    if missing := sorted(file for file in files if not (index.parent / file).is_file()):
        raise MRCError(f"{index.parent / missing[0]} is missing, of {len(files)} shards; {remedy}")
    return [(index.parent / file, keys) for file, keys in sorted(files.items())]


def modern_vae_keys(state: State) -> State:
    """Rename the attention keys of old diffusers; 1×1 convolutions of still older files become matrices."""

    def rename(key: str) -> str:
        return re.sub(
            r"(attentions\.\d+)\.(query|key|value|proj_attn)\.",
            lambda match: f"{match[1]}.{VAE_OLD_KEYS[match[2]]}.",
            key,
        )

    renamed = {rename(key): value for key, value in state.items()}
    return {
        key: value.flatten(1) if re.search(r"attentions\.\d+\.to_.*weight$", key) else value
        for key, value in renamed.items()
    }


def fill(module: Module, state: State, dtype: torch.dtype, place: Path) -> Module:
    """Give `module` exactly the tensors of `state`, as `dtype`; a wrong key or shape is an error."""
    own = module.state_dict()
    faults = [f"missing {key}" for key in own.keys() - state.keys()]
    faults += [f"unknown {key}" for key in state.keys() - own.keys()]
    faults += [
        f"{key} is {list(state[key].shape)}, its config says {list(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    faults += [
        f"{key} is {state[key].dtype}, not floating point"
        for key in own.keys() & state.keys()
        if own[key].is_floating_point() != state[key].is_floating_point()
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:8])
        raise MRCError(f"{place}: {len(faults)} tensors do not fit config.json: {shown}; use the matching config")
    module.load_state_dict(state, assign=True)
    # not module.to: diffusers' own warns about modules to be kept in float32 even where it lists none
    return torch.nn.Module.to(module, dtype).eval().requires_grad_(False)
