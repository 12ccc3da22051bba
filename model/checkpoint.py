"""Read and write checkpoints in the released folder layout: safetensors only, strict on every tensor.

    model_index.json  scheduler/  tokenizer/  text_encoder/  unet/  vae/  defaults.json (ours, where it differs)

Keys written by older libraries load: `text_model.` prefixes in the text encoder, `query`/`key`/
`value`/`proj_attn` in the VAE's attention.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import safetensors.torch
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..core.defaults import Defaults, read_defaults, write_defaults
from ..core.errors import MRCError, reason
from ..core.files import Check, file_digest, nothing, replace_folder
from .configs import read_config
from .rewards import BLOCK_KEYS, REWARD_KEYS
from .scheduler import write_scheduler
from .settings import check_vae_settings
from .smartedit import CONFIG as SMARTEDIT
from .tokenizer import load_tokenizer
from .unet import MRCUNet
from .weights import WEIGHTS, Module, fill, modern_vae_keys, read_weights

# All that `save_checkpoint` may write, with any version of the libraries
CHECKPOINT_FILES = (
    "model_index.json", "defaults.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "unet/config.json", "vae/config.json", *(f"{part}/{name}" for part, name in WEIGHTS.items()),
    *(f"tokenizer/{name}" for name in (
        "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
        "vocab.json",
    )),
)  # fmt: skip


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

    Weights may be in shards, or of one variant such as fp16; they become `dtype`.

    Raises:
        MRCError: not a checkpoint folder; pickled, truncated or non-finite weights; keys or shapes
            that do not fit the configuration; a part of the reward keys missing; parts of different models.
    """
    folder = Path(folder)
    check_is_checkpoint(folder)
    with tqdm(total=3, desc="load checkpoint", leave=False, disable=None) as progress:
        unet = load_unet(folder / "unet", dtype)
        unet.feature_bias = (folder / SMARTEDIT).is_file()
        progress.update()
        vae = built(folder / "vae", AutoencoderKL.from_config)
        check_vae_settings(vae.config)
        fill(vae, modern_vae_keys(read_weights(folder, "vae", dtype)), dtype, folder / "vae")
        progress.update()
        text_encoder = built(folder / "text_encoder", lambda config: CLIPTextModel(CLIPTextConfig(**config)))
        text_state = {
            key.removeprefix("text_model."): value
            for key, value in read_weights(folder, "text_encoder", dtype).items()
            if not key.endswith("position_ids")  # an integer buffer that old libraries saved
        }
        fill(text_encoder, text_state, dtype, folder / "text_encoder")
        progress.update()
    tokenizer, scheduler = load_tokenizer(folder / "tokenizer"), load_scheduler(folder / "scheduler")
    if (last := max(tokenizer.get_vocab().values())) >= (size := text_encoder.config.vocab_size):
        raise MRCError(f"{folder}: the tokenizer has token {last} and the text encoder {size}; use matching ones")
    return Checkpoint(unet, vae, text_encoder, tokenizer, scheduler, read_defaults(folder))


def check_is_checkpoint(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise MRCError(f"{folder} is not a checkpoint: it has no model_index.json; give a diffusers model folder")


def load_unet(folder: Path, dtype: torch.dtype) -> MRCUNet:
    state = read_weights(folder.parent, folder.name, dtype)
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
    config = read_config(folder / "config.json")
    try:
        with init_empty_weights():
            return make(config)
    except MRCError:
        raise
    except Exception as error:  # diffusers and transformers raise many types for a wrong value
        raise MRCError(f"{folder}/config.json describes no model ({reason(error)}); restore the original") from None


def load_scheduler(folder: Path) -> diffusers.SchedulerMixin:
    path = folder / "scheduler_config.json"
    config = read_config(path)
    name = config.get("_class_name")
    if not (isinstance(name, str) and name.endswith("Scheduler") and hasattr(diffusers, name)):
        raise MRCError(f"{path}: _class_name is {name!r}, not a diffusers scheduler; restore the original file")
    try:
        return getattr(diffusers, name).from_config(config)
    except Exception as error:  # many types for a wrong value, and ImportError for what a scheduler needs
        raise MRCError(f"{path} describes no scheduler ({reason(error)}); restore the original file") from None


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
            config = read_config(out / name / "config.json") | {"_class_name": diffusers_class}
            config.pop("_name_or_path", None)  # the folder it was read from says nothing on another machine
            (out / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        checkpoint.text_encoder.config.save_pretrained(out / "text_encoder")
        text_state = {"text_model." + key: value for key, value in checkpoint.text_encoder.state_dict().items()}
        write_weights(text_state, out / "text_encoder" / WEIGHTS["text_encoder"])
        checkpoint.tokenizer.save_pretrained(out / "tokenizer")
        checkpoint.tokenizer.backend_tokenizer.model.save(str(out / "tokenizer"))  # vocab.json, merges.txt
        write_scheduler(checkpoint.scheduler, out / "scheduler")
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
    """SHA-256 over the names and contents of the checkpoint's weight and configuration files.

    Raises:
        MRCError: it is not a checkpoint folder.
    """
    check_is_checkpoint(Path(folder))
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in {".safetensors", ".json", ".txt"} and path.is_file():
            digest.update(f"{path.relative_to(folder)} {file_digest(path)}\n".encode())
    return digest.hexdigest()
