"""A checkpoint in a single file, in the layout of the original code, as ComfyUI and the A1111 web UI use it.

    model.diffusion_model.…   cond_stage_model.…   first_stage_model.…   model_ema.… (averaged weights)

The file has neither settings nor a tokenizer. Both come from a `base` folder in diffusers' layout; settings that it
lacks are those of Stable Diffusion 1.5.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from ..core.errors import MRCError
from ..core.paths import check_links
from ..core.schema import JsonObject
from .configs import read_config
from .family import check_file
from .original_names import open_clip_state, unet_name, vae_name
from .source import Source, files_below
from .weights import PICKLES, State, cast, read_tensors

UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.", "cond_stage_model.model."
)  # fmt: skip
EMA = "model_ema."
# Settings of Stable Diffusion 1.5 where they are not diffusers' and transformers' defaults
SETTINGS: dict[str, JsonObject] = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": {
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "projection_dim": 768, "hidden_act": "quick_gelu", "vocab_size": 49408, "max_position_embeddings": 77,
        "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
    },
    "scheduler": {
        "_class_name": "EulerAncestralDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "steps_offset": 1,
    },
}  # fmt: skip


def file_source(path: Path, base: Path | None) -> Source:
    """A `.safetensors` file.

    Args:
        base: folder with `tokenizer/`, and with the settings of the parts where they are not those of SD 1.5.

    Raises:
        MRCError: a pickle, a damaged file, a model of another family, or a base that lacks what is needed.
    """
    if path.suffix != ".safetensors":
        pickled = any(path.match(pattern) for pattern in PICKLES)
        advice = f"run mrc-convert checkpoint {path} OUT" if pickled else "give a .safetensors file or a folder"
        raise MRCError(f"{path} is {'a pickle, which can run code' if pickled else 'no model'}; {advice}")
    return tensors_source(read_tensors(path), path, base)


def tensors_source(tensors: Mapping[str, torch.Tensor], path: Path, base: Path | None, ema: bool = False) -> Source:
    """The model whose tensors, under their original names, are those of the file `path`.

    Args:
        ema: take the averaged weights of the U-Net, where the file has them.
    """
    check_file(tensors.keys(), path)
    check_base(base, tensors, path)
    assert base is not None
    tell_left_out(tensors, path, ema)

    def config(part: str) -> JsonObject:
        own = base / part / "config.json"
        found = read_config(own) if own.is_file() else dict(SETTINGS[part])
        if part == "unet":  # the same model may be of text to image or of editing
            found["in_channels"] = tensors[f"{UNET}input_blocks.0.0.weight"].shape[1]
        return found

    def weights(part: str, dtype: torch.dtype) -> State:
        state = READERS[part](tensors, config(part), ema)
        return {name: cast(name, value, dtype, path) for name, value in state.items()}

    def scheduler() -> tuple[JsonObject, Path]:
        own = base / "scheduler" / "scheduler_config.json"
        return (read_config(own), own) if own.is_file() else (dict(SETTINGS["scheduler"]), path)

    used = ("tokenizer", "scheduler", "unet/config.json", "vae/config.json", "text_encoder/config.json")
    return Source(
        config=config,
        weights=weights,
        place=lambda part: path,
        tokenizer=base / "tokenizer",
        scheduler=scheduler,
        files=lambda: [path, *(file for name in used for file in files_at(base / name))],
    )


def files_at(path: Path) -> list[Path]:
    return files_below(path) if path.is_dir() else [path] if path.is_file() else []


def check_base(base: Path | None, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse a base without the tokenizer, and for models with OpenCLIP one without the settings."""
    needed = ["tokenizer"]
    if any(name.startswith(OPEN_CLIP) for name in tensors):  # the file does not say what its U-Net predicts
        needed += ["unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
    missing = [name for name in needed if base is None or not (base / name).exists()]
    if missing:
        given = "no base was given" if base is None else f"{base} has none"
        raise MRCError(
            f"{path} has no {', '.join(missing)}, as all single files, and {given}; give base (--base), a model folder "
            "in diffusers' layout of the same family, such as that of Stable Diffusion 1.5; its weights are not needed"
        )
    assert base is not None
    check_links(base)


def tell_left_out(tensors: Mapping[str, torch.Tensor], path: Path, ema: bool) -> None:
    """Warn once about tensors that are not used."""
    used = (UNET, VAE, CLIP, OPEN_CLIP) + ((EMA,) if ema else ())
    others: dict[str, int] = {}
    for name in tensors:
        if not name.startswith(used):
            start = name.split(".")[0]
            others[start] = others.get(start, 0) + 1
    if others:
        listed = ", ".join(f"{start} ({count})" for start, count in sorted(others.items()))
        warnings.warn(f"{path}: tensors that are not used: {listed}", stacklevel=2)


def part_of(tensors: Mapping[str, torch.Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def read_unet(tensors: Mapping[str, torch.Tensor], config: JsonObject, ema: bool) -> State:
    layers = config.get("layers_per_block", 2)
    if type(layers) is not int:
        raise MRCError(f"layers_per_block is {layers!r:.40}; a single file has the same number in every block")
    state = part_of(tensors, UNET)
    if ema:
        averaged = {name: EMA + f"diffusion_model.{name}".replace(".", "") for name in state}
        if missing := sorted(name for name in averaged.values() if name not in tensors):
            raise MRCError(f"the file has no averaged weights {missing[0]}; leave out ema")
        state = {name: tensors[other] for name, other in averaged.items()}
    return {unet_name(name, layers): value for name, value in state.items()}


def read_vae(tensors: Mapping[str, torch.Tensor], config: JsonObject, ema: bool = False) -> State:
    levels = len(config.get("block_out_channels", ()))
    return {vae_name(name, levels): value for name, value in part_of(tensors, VAE).items()}


def read_text_encoder(tensors: Mapping[str, torch.Tensor], config: JsonObject, ema: bool) -> State:
    if state := part_of(tensors, CLIP):
        return state
    layers = config.get("num_hidden_layers")
    # Stable Diffusion 2 takes the states before OpenCLIP's last layer, which its files hold all the same
    return open_clip_state(
        {
            name: value
            for name, value in part_of(tensors, OPEN_CLIP).items()
            if not name.startswith(f"transformer.resblocks.{layers}.")
        }
    )


READERS = {"unet": read_unet, "vae": read_vae, "text_encoder": read_text_encoder}


def read_vae_file(path: Path, config: JsonObject, dtype: torch.dtype) -> State:
    """The VAE in a `.safetensors` file, alone or as part of a model, under original or diffusers' names."""
    if path.suffix != ".safetensors":
        raise MRCError(f"vae is {str(path)!r}; give a folder, or a .safetensors file")
    tensors = read_tensors(path)
    state = part_of(tensors, VAE) or dict(tensors)
    if any(name.startswith("encoder.down.") for name in state):
        state = read_vae({VAE + name: value for name, value in state.items()}, config)
    return {name: cast(name, value, dtype, path) for name, value in state.items()}
