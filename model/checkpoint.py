"""Read and write checkpoints in the released folder layout: safetensors only, strict on every tensor.

    model_index.json  scheduler/  tokenizer/  text_encoder/  unet/  vae/  defaults.json (ours, where it differs)

Keys written by older libraries load: `text_model.` prefixes in the text encoder, `query`/`key`/
`value`/`proj_attn` in the VAE's attention.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import diffusers
import safetensors.torch
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..core.defaults import Defaults, read_defaults, write_defaults
from ..core.errors import MRCError
from ..core.files import Check, file_digest, nothing, read_json, replace_folder
from .rewards import BLOCK_KEYS, REWARD_KEYS
from .unet import MRCUNet

Module = TypeVar("Module", bound=torch.nn.Module)

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
# All that `save_checkpoint` may write, with any version of the libraries
CHECKPOINT_FILES = (
    "model_index.json", "defaults.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "unet/config.json", "vae/config.json", *(f"{part}/{name}" for part, name in WEIGHTS.items()),
    *(f"tokenizer/{name}" for name in (
        "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
        "vocab.json",
    )),
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
REMEDY = "the checkpoint is incomplete or damaged, restore the original file"
VAE_OLD_KEYS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; modules are in evaluation mode on the CPU, without gradients."""

    unet: MRCUNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: diffusers.SchedulerMixin
    defaults: Defaults = field(default_factory=Defaults)


def load_checkpoint(folder: str | Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Load an MRC or plain InstructPix2Pix checkpoint folder.

    All reward keys missing gives a U-Net with `rewards=False`, keys of layers after the blocks one
    with `reward_injection="blocks"`.

    Raises:
        MRCError: not a checkpoint folder; pickled, truncated or non-finite weights; keys or shapes
            that do not fit the configuration; a part of the reward keys missing.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise MRCError(f"{folder} is not a checkpoint: it has no model_index.json; give a diffusers model folder")
    with tqdm(total=3, desc="load checkpoint", leave=False, disable=None) as progress:
        unet = load_unet(folder / "unet", dtype)
        progress.update()
        vae = built(folder / "vae", AutoencoderKL.from_config)
        fill(vae, modern_vae_keys(read_weights(folder, "vae")), dtype, folder / "vae")
        progress.update()
        text_encoder = built(folder / "text_encoder", lambda config: CLIPTextModel(CLIPTextConfig(**config)))
        text_state = {
            key.removeprefix("text_model."): value
            for key, value in read_weights(folder, "text_encoder").items()
            if not key.endswith("position_ids")  # an integer buffer that old libraries saved
        }
        fill(text_encoder, text_state, dtype, folder / "text_encoder")
        progress.update()
    tokenizer, scheduler = load_tokenizer(folder / "tokenizer"), load_scheduler(folder / "scheduler")
    return Checkpoint(unet, vae, text_encoder, tokenizer, scheduler, read_defaults(folder))


def load_unet(folder: Path, dtype: torch.dtype) -> MRCUNet:
    state = read_weights(folder.parent, folder.name)
    rewards = {key for key in state if key.startswith(REWARD_KEYS)}
    injection = "blocks" if any(key.startswith(BLOCK_KEYS) for key in rewards) else "time"
    unet = built(folder, lambda config: MRCUNet(bool(rewards), injection, **without_notes(config)))
    needed = {key for key in unet.state_dict() if key.startswith(REWARD_KEYS)}
    if missing := sorted(needed - rewards):
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise MRCError(
            f"{folder} has {len(rewards)} reward tensors but lacks {missing[:8]}{more}; an MRC checkpoint with "
            f"reward_injection={injection!r} has all {len(needed)}, a plain InstructPix2Pix one none"
        )
    return fill(unet, state, dtype, folder)


def without_notes(config: dict) -> dict:
    """Without diffusers' notes such as `_class_name`."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def built(folder: Path, make: Callable[[dict], Module]) -> Module:
    """The module that `folder/config.json` describes, its parameters still empty."""
    config = read_config(folder)
    try:
        with init_empty_weights():
            return make(config)
    except MRCError:
        raise
    except Exception as error:  # diffusers and transformers raise many types for a wrong value
        reason = f"{type(error).__name__}: {error}"
        raise MRCError(f"{folder}/config.json describes no model ({reason}); restore the original file") from None


def read_config(folder: Path) -> dict:
    return read_json(folder / "config.json", REMEDY)


def read_weights(checkpoint: Path, part: str) -> dict[str, torch.Tensor]:
    """Tensors of `checkpoint/part` after checking that each is floating point and finite."""
    path = checkpoint / part / WEIGHTS[part]
    if not path.is_file():
        pickles = sorted(file.name for pattern in PICKLES for file in path.parent.glob(pattern))
        if pickles:
            raise MRCError(
                f"{path.parent} holds pickled weights {pickles}, which can run code and are never loaded; "
                "convert them to safetensors"
            )
        raise MRCError(f"{path} is missing; the checkpoint folder is incomplete")
    try:
        state = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise MRCError(f"{path} cannot be read ({error}); it is truncated or damaged, copy it again") from None
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise MRCError(f"{path}: tensor {key} holds NaN or infinity; restore it from the original checkpoint")
    return state


def modern_vae_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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


def fill(module: Module, state: dict[str, torch.Tensor], dtype: torch.dtype, folder: Path) -> Module:
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
        raise MRCError(f"{folder}: {len(faults)} tensors do not fit config.json: {shown}; use the matching config")
    module.load_state_dict(state, assign=True)
    # not module.to: diffusers' own warns about modules to be kept in float32 even where it lists none
    return torch.nn.Module.to(module, dtype).eval().requires_grad_(False)


def load_scheduler(folder: Path) -> diffusers.SchedulerMixin:
    config = read_json(folder / "scheduler_config.json", REMEDY)
    name = config.get("_class_name")
    if not (isinstance(name, str) and name.endswith("Scheduler") and hasattr(diffusers, name)):
        raise MRCError(f"{folder}: _class_name is {name!r}, not a diffusers scheduler; restore the original file")
    return getattr(diffusers, name).from_config(config)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise MRCError(f"{folder / name} is missing; the checkpoint folder is incomplete")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exception
        raise MRCError(f"{folder} holds no CLIP tokenizer ({error}); restore the original files") from None


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path, check: Check = nothing) -> None:
    """Write `checkpoint` in the released layout; the folder appears whole or not at all.

    As in the release, `unet/config.json` says nothing of the rewards and text-encoder keys start
    with `text_model.`, so a plain diffusers pipeline reads the folder too.

    Raises:
        MRCError: a full disk, or a `folder` that `check` does not let go; by default one that holds anything.
    """
    with replace_folder(Path(folder), check) as out:
        for name, diffusers_class in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
            module = getattr(checkpoint, name)
            module.save_config(out / name)
            write_weights(module.state_dict(), out / name / WEIGHTS[name])
            # diffusers would look for a class of the name that save_config wrote
            config = read_config(out / name) | {"_class_name": diffusers_class}
            config.pop("_name_or_path", None)  # the folder it was read from says nothing on another machine
            (out / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        checkpoint.text_encoder.config.save_pretrained(out / "text_encoder")
        text_state = {"text_model." + key: value for key, value in checkpoint.text_encoder.state_dict().items()}
        write_weights(text_state, out / "text_encoder" / WEIGHTS["text_encoder"])
        checkpoint.tokenizer.save_pretrained(out / "tokenizer")
        checkpoint.tokenizer.backend_tokenizer.model.save(str(out / "tokenizer"))  # vocab.json, merges.txt
        checkpoint.scheduler.save_pretrained(out / "scheduler")
        index = {
            "_class_name": "StableDiffusionInstructPix2PixPipeline",
            "_diffusers_version": diffusers.__version__,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", type(checkpoint.scheduler).__name__],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        write_defaults(out, checkpoint.defaults)


def write_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write one safetensors file.

    Raises:
        MRCError: it cannot be written (a full disk, a missing right).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().contiguous() for key, value in state.items()}
    try:
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:  # what safetensors makes of every error of the disk
        raise MRCError(f"{path} cannot be written ({error}); free some space and run it again") from None
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def checkpoint_digest(folder: str | Path) -> str:
    """SHA-256 over the names and contents of the checkpoint's weight and configuration files."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in {".safetensors", ".json", ".txt"} and path.is_file():
            digest.update(f"{path.relative_to(folder)} {file_digest(path)}\n".encode())
    return digest.hexdigest()
