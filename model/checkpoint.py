"""Read and write checkpoints in the released folder layout: safetensors only, strict on every tensor.

    model_index.json  scheduler/  tokenizer/  text_encoder/  unet/  vae/  defaults.json (ours, where it differs)

Keys written by older libraries load: `text_model.` prefixes in the text encoder, `query`/`key`/
`value`/`proj_attn` in the VAE's attention.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import safetensors.torch
import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..core.defaults import Defaults, write_defaults
from ..core.errors import MRCError, reason
from ..core.files import Check, file_digest, nothing, replace_folder
from ..core.paths import snapshot
from ..core.schema import JsonObject
from .configs import read_config
from .family import check_unet_family
from .layouts import open_source
from .rewards import BLOCK_KEYS, REWARD_KEYS
from .scheduler import write_scheduler
from .source import Source
from .tiny_vae import TinyVae, Vae, make_vae
from .tokenizer import load_tokenizer
from .unet import MRCUNet
from .weights import WEIGHTS, Module, State, fill, modern_vae_keys

# All that `save_checkpoint` may write, with any version of the libraries
CHECKPOINT_FILES = (
    "model_index.json", "defaults.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "unet/config.json", "vae/config.json", *(f"{part}/{name}" for part, name in WEIGHTS.items()),
    *(f"tokenizer/{name}" for name in (
        "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
        "vocab.json",
    )),
)  # fmt: skip

# Tensors that other libraries save beside those that are computed with
HARMLESS = {
    "text_encoder": r"(^|\.)position_ids$|^text_projection(\.weight)?$|^logit_scale$",
    "vae": r"^(loss|model_ema)\.",
}
EMA_SETTINGS = {
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; modules are in evaluation mode on the CPU, without gradients."""

    unet: MRCUNet
    vae: Vae
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: diffusers.SchedulerMixin
    defaults: Defaults = field(default_factory=Defaults)


def load_checkpoint(
    model: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    variant: str | None = None,
    vae: str | Path | None = None,
    base: str | Path | None = None,
) -> Checkpoint:
    """Load an MRC or plain InstructPix2Pix checkpoint: a folder, or a single `.safetensors` file (docs/checkpoints.md).

    All reward keys missing gives a U-Net with `rewards=False`, keys of layers after the blocks one
    with `reward_injection="blocks"`. Weights may be in shards; they become `dtype`.

    Args:
        variant: of the weights of a folder, such as "fp16"; by default the plain ones, or else the only ones.
        vae: folder or `.safetensors` file of another VAE, in place of the model's own; a folder may hold a tiny one.
        base: of a single file: a folder in diffusers' layout with the tokenizer, and with the settings where they
            are not those of Stable Diffusion 1.5.

    Raises:
        MRCError: no checkpoint, or one of another family; pickled, truncated or non-finite weights; keys or shapes
            that do not fit the configuration; a part of the reward keys missing; parts of different models.
    """
    return load_source(open_source(model, variant, vae, base), dtype)


def load_source(source: Source, dtype: torch.dtype) -> Checkpoint:
    """As `load_checkpoint`."""
    with tqdm(total=3, desc="load checkpoint", leave=False, disable=None) as progress:
        unet = load_unet(source, dtype)
        unet.feature_bias = source.feature_bias
        progress.update()
        vae = made(source, "vae", make_vae)
        fill_part(vae, source, "vae", modern_vae_keys(source.weights("vae", dtype)), dtype)
        progress.update()
        text_encoder = made(source, "text_encoder", lambda config: CLIPTextModel(CLIPTextConfig(**config)))
        text_state = {
            key.removeprefix("text_model."): value for key, value in source.weights("text_encoder", dtype).items()
        }
        fill_part(text_encoder, source, "text_encoder", text_state, dtype)
        progress.update()
    tokenizer, scheduler = load_tokenizer(source.tokenizer), make_scheduler(*source.scheduler())
    if (last := max(tokenizer.get_vocab().values())) >= (size := text_encoder.config.vocab_size):
        raise MRCError(
            f"{source.tokenizer}: the tokenizer has token {last} and the text encoder {size}; use matching ones"
        )
    return Checkpoint(unet, vae, text_encoder, tokenizer, scheduler, source.defaults)


def load_unet(source: Source, dtype: torch.dtype) -> MRCUNet:
    state, place = source.weights("unet", dtype), source.place("unet")
    rewards = {key for key in state if key.startswith(REWARD_KEYS)}
    injection = "blocks" if any(key.startswith(BLOCK_KEYS) for key in rewards) else "time"

    def make(config: JsonObject) -> MRCUNet:
        check_unet_family(config, state, place)
        return MRCUNet(bool(rewards), injection, **without_notes(without_average(config, place)))

    unet = made(source, "unet", make)
    needed = {key for key in unet.state_dict() if key.startswith(REWARD_KEYS)}
    if missing := sorted(needed - rewards):
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise MRCError(
            f"{place} has {len(rewards)} reward tensors but lacks {missing[:8]}{more}; an MRC checkpoint with "
            f"reward_injection={injection!r} has all {len(needed)}, a plain InstructPix2Pix one none"
        )
    return fill(unet, state, dtype, place)


def fill_part(module: torch.nn.Module, source: Source, part: str, state: State, dtype: torch.dtype) -> None:
    """Fill `module` with the tensors of a part; those that no inference needs are left out with a warning."""
    own, place = module.state_dict(), source.place(part)
    harmless = sorted(key for key in state.keys() - own.keys() if re.search(HARMLESS[part], key))
    if harmless:
        warnings.warn(f"{place}: tensors that are not used: {', '.join(harmless[:8])}", stacklevel=2)
    fill(module, {key: value for key, value in state.items() if key not in harmless}, dtype, place)


def without_average(config: JsonObject, place: Path) -> JsonObject:
    """Without the settings of diffusers' `EMAModel`, which it saves among those of the averaged U-Net."""
    if named := sorted(EMA_SETTINGS & config.keys()):
        warnings.warn(f"{place}/config.json: settings that are not used: {', '.join(named)}", stacklevel=2)
    return {key: value for key, value in config.items() if key not in EMA_SETTINGS}


def without_notes(config: dict) -> dict:
    """Without diffusers' notes such as `_class_name`."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def made(source: Source, part: str, make: Callable[[JsonObject], Module]) -> Module:
    """The module that the settings of a part describe, its parameters still empty."""
    return make_empty(source.config(part), source.place(part), make)


def built(folder: Path, make: Callable[[JsonObject], Module]) -> Module:
    """The module that `folder/config.json` describes, its parameters still empty."""
    return make_empty(read_config(folder / "config.json"), folder, make)


def make_empty(config: JsonObject, place: Path, make: Callable[[JsonObject], Module]) -> Module:
    try:
        with init_empty_weights():
            return make(config)
    except MRCError:
        raise
    except Exception as error:  # diffusers and transformers raise many types for a wrong value
        raise MRCError(f"{place}/config.json describes no model ({reason(error)}); restore the original") from None


def load_scheduler(folder: Path) -> diffusers.SchedulerMixin:
    path = folder / "scheduler_config.json"
    return make_scheduler(read_config(path), path)


def make_scheduler(config: JsonObject, path: Path) -> diffusers.SchedulerMixin:
    name = config.get("_class_name")
    if not (isinstance(name, str) and name.endswith("Scheduler") and hasattr(diffusers, name)):
        raise MRCError(f"{path}: _class_name is {name!r}, not a diffusers scheduler; restore the original file")
    try:
        return getattr(diffusers, name).from_config(config)
    except Exception as error:  # many types for a wrong value, and ImportError for what a scheduler needs
        raise MRCError(f"{path} describes no scheduler ({reason(error)}); restore the original file") from None


def save_checkpoint(
    checkpoint: Checkpoint, folder: str | Path, check: Check = nothing, more: Callable[[Path], None] = lambda out: None
) -> None:
    """Write `checkpoint` in the released layout; the folder appears whole or not at all.

    As in the release, `unet/config.json` says nothing of the rewards and text-encoder keys start
    with `text_model.`, so a plain diffusers pipeline reads the folder too.

    Args:
        more: writes what else the folder is to hold.

    Raises:
        MRCError: a full disk, or a `folder` that `check` does not let go; by default one that holds anything.
    """
    with replace_folder(Path(folder), check) as out:
        tiny = isinstance(checkpoint.vae, TinyVae)
        vae_class = "AutoencoderTiny" if tiny else "AutoencoderKL"
        for name, diffusers_class in (("unet", "UNet2DConditionModel"), ("vae", vae_class)):
            module = getattr(checkpoint, name)
            module.save_config(out / name)
            write_weights(module.state_dict(), out / name / WEIGHTS[name])
            # diffusers would look for a class of the name that save_config wrote
            config = read_config(out / name / "config.json") | {"_class_name": diffusers_class}
            config.pop("_name_or_path", None)  # the folder it was read from says nothing on another machine
            if tiny and name == "vae":
                config["scaling_factor"] = 1.0  # diffusers' class reads scaled latents
            (out / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        checkpoint.text_encoder.config.save_pretrained(out / "text_encoder")
        text_state = {"text_model." + key: value for key, value in checkpoint.text_encoder.state_dict().items()}
        write_weights(text_state, out / "text_encoder" / WEIGHTS["text_encoder"])
        tokenizer = checkpoint.tokenizer.backend_tokenizer
        tokenizer.no_truncation()  # what the last call asked for would be saved
        tokenizer.no_padding()
        checkpoint.tokenizer.save_pretrained(out / "tokenizer")
        tokenizer.model.save(str(out / "tokenizer"))  # vocab.json, merges.txt
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
            "vae": ["diffusers", vae_class],
        }
        (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        write_defaults(out, checkpoint.defaults)
        more(out)


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


def checkpoint_digest(
    model: str | Path,
    *,
    variant: str | None = None,
    vae: str | Path | None = None,
    base: str | Path | None = None,
) -> str:
    """SHA-256 over the names and contents of a checkpoint's weight and configuration files.

    Args:
        variant, vae, base: as in `load_checkpoint`.

    Raises:
        MRCError: it is no checkpoint.
    """
    root = snapshot(Path(model))
    digest = hashlib.sha256("".join(f"variant {name}\n" for name in [variant] if name is not None).encode())
    for path in open_source(model, variant, vae, base).files():
        name = path.relative_to(root) if path.is_relative_to(root) else path.name
        digest.update(f"{name} {file_digest(path)}\n".encode())
    return digest.hexdigest()
