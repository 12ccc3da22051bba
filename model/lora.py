"""LoRA files merged into a checkpoint's weights: the formats of diffusers, PEFT and kohya, LoCon's convolutions too.

A file holds pairs of small matrices, `down` `[r, in, …]` and `up` `[out, r, …]`, under the name of a layer. The layer's
weight grows by `scale · alpha / r · up · down`. Names are looked up among the model's own layers, so that a tensor
either finds its place or is an error.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.adapters import MergedLora
from ..core.defaults import Defaults
from ..core.errors import MRCError
from ..core.files import read_json
from ..core.schema import JsonObject, parse
from .adapter_files import AdapterFile, read_adapter_file
from .checkpoint import Checkpoint
from .guidance import GUIDANCE_KEY

# Endings of keys, and what the tensor is
ROLES = {
    ".lora_A.weight": "down", ".lora_B.weight": "up",  # PEFT and diffusers
    ".lora.down.weight": "down", ".lora.up.weight": "up",  # diffusers until 0.25
    "_lora.down.weight": "down", "_lora.up.weight": "up",  # its attention processors until 0.20
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",  # its text encoder
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid", ".alpha": "alpha",  # kohya, LoCon
}  # fmt: skip
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # of PEFT and diffusers
PEFT_CONFIG, PEFT_PREFIX = "adapter_config.json", "base_model.model."
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # entry of the header of a file that diffusers wrote
DEFAULTS_HEADER = "mrc_defaults"  # entry of the header of a student's file: what it edits best with
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # of PEFT's adapters, which leave the base as it is


@dataclass
class Layer:
    """What a file holds for one layer of the model."""

    weight: Tensor
    name: str  # as in the file
    tensors: dict[str, Tensor]  # by role


def merge_loras(checkpoint: Checkpoint, scales: Mapping[str | Path, float]) -> list[MergedLora]:
    """Add LoRA files to the weights of the U-Net and the text encoder, in place, in float32.

    A file of `mrc-train --stage distill --lora-rank` makes a student of the U-Net (`student_defaults`).

    Args:
        scales: by file, or by folder of one that PEFT or diffusers saved.

    Returns:
        What was merged, in order.

    Raises:
        MRCError: a file that is no LoRA of finite numbers, one for another model, or a scale that is no finite number.
    """
    if not isinstance(scales, Mapping):
        raise MRCError(f"lora is {scales!r:.80}; give scales by file, such as {{'style.safetensors': 0.8}}")
    merged = []
    for path, scale in scales.items():
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise MRCError(f"the scale of {path} is {scale!r:.40}; give a finite number, such as 0.8")
        file = read_adapter_file(weights_of(Path(path)))
        add_guidance(file, checkpoint, float(scale))
        layers, configs = matched(file, checkpoint), settings(file)
        for layer in tqdm(layers, desc=f"merge {file.path.name}", unit="layer", leave=False, disable=None):
            layer.weight += change(file, layer) * (float(scale) * strength(file, layer, configs))
        merged.append(MergedLora(file.path.name, file.sha256, float(scale)))
    return merged


def add_guidance(file: AdapterFile, checkpoint: Checkpoint, scale: float) -> None:
    """Take the guidance embedding out of a student's file and add it to the U-Net."""
    embedding = file.tensors.pop(f"unet.{GUIDANCE_KEY}", None)
    if embedding is None:
        return
    if not checkpoint.unet.embeds_guidance:
        checkpoint.unet.embed_guidance()
    weight = checkpoint.unet.get_parameter(GUIDANCE_KEY)
    if weight.shape != embedding.shape:
        raise MRCError(
            f"{file.path} is for another model: its guidance embedding is {list(embedding.shape)}, this model's is "
            f"{list(weight.shape)}; give a LoRA for this model"
        )
    weight.data += scale * embedding


def student_defaults(scales: Mapping[str | Path, float]) -> Defaults:
    """What the last of these LoRA files that is a student's edits best with.

    Raises:
        MRCError: no file says so.
    """
    headers = {path: read_adapter_file(weights_of(Path(path))).metadata for path in scales}
    said = [(path, header[DEFAULTS_HEADER]) for path, header in headers.items() if DEFAULTS_HEADER in header]
    if not said:
        raise MRCError(f"{', '.join(map(str, scales))}: no header has {DEFAULTS_HEADER}; copy the student's LoRA again")
    path, text = said[-1]
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MRCError(f"{path}: {DEFAULTS_HEADER} in its header is damaged ({error}); copy it again") from None
    return parse(Defaults, entries, f"{path}: {DEFAULTS_HEADER}")


def weights_of(path: Path) -> Path:
    """The file of weights at `path`, which may be the folder that it is in."""
    if not path.is_dir():
        return path
    found = [path / name for name in FOLDER_FILES if (path / name).is_file()]
    if len(found) != 1:
        raise MRCError(f"{path} holds {len(found)} of {' and '.join(FOLDER_FILES)}; give the LoRA file itself")
    return found[0]


def matched(file: AdapterFile, checkpoint: Checkpoint) -> list[Layer]:
    """The tensors of a file by layer of the model, each pair whole."""
    known, layers, strangers = weights_by_name(checkpoint), dict[int, Layer](), []
    for key, tensor in file.tensors.items():
        ending = next((ending for ending in ROLES if key.endswith(ending)), None)
        if ending is None:
            raise MRCError(
                f"{file.path} holds {key:.100}, which is of no LoRA or LoCon (perhaps of LoHa, LoKr, DoRA or a whole "
                "layer); give a LoRA file"
            )
        name = layer_name(key, ending)
        if (weight := known.get(name)) is None:
            strangers.append(key)
            continue
        layer = layers.setdefault(id(weight), Layer(weight, name, {}))
        if ROLES[ending] in layer.tensors:
            raise MRCError(
                f"{file.path} holds {key:.100} a second time, under another name; give a file with one of them"
            )
        layer.tensors[ROLES[ending]] = tensor
    if strangers:
        raise MRCError(
            f"{file.path} is for another model: {len(strangers)} of its {len(file.tensors)} tensors are for layers "
            f"that this one lacks, such as {strangers[0]:.100}; give a LoRA for this model"
        )
    for layer in layers.values():
        if not {"down", "up"} <= layer.tensors.keys():
            raise MRCError(f"{file.path} lacks a tensor of {layer.name}, which has up and down; copy it again")
    return list(layers.values())


def layer_name(key: str, ending: str) -> str:
    name = key.removesuffix(ending).removeprefix(PEFT_PREFIX).replace(".processor.", ".")
    return f"{name}.0" if ending.startswith("_lora") and name.endswith(".to_out") else name


def weights_by_name(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of all linear layers and convolutions, by each name that a format may give the layer."""
    names: dict[str, Tensor] = {}
    for part, kohya in KOHYA.items():
        for path, module in getattr(checkpoint, part).named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            path, weight = path.removesuffix(".base_layer"), module.weight.data  # peft wraps a layer that has a LoRA
            # transformers 5 dropped the prefix text_model
            for name in [path, f"text_model.{path}"] if part == "text_encoder" else [path]:
                names |= dict.fromkeys((name, f"{part}.{name}", kohya + name.replace(".", "_")), weight)
    return names


def change(file: AdapterFile, layer: Layer) -> Tensor:
    """`up · down` in the shape of the layer's weight.

    Raises:
        MRCError: the shapes do not fit the weight.
    """
    down, up, mid = (layer.tensors.get(role) for role in ("down", "up", "mid"))
    assert down is not None and up is not None
    shapes = {role: list(tensor.shape) for role, tensor in layer.tensors.items() if role != "alpha"}
    fits = all(2 <= len(shape) <= 4 and shape[0] for shape in shapes.values())
    if fits and mid is not None:
        fits = kernel(down)[1:] == (1, 1) and mid.shape[:2] == (len(down), len(down))
        down = torch.einsum("srkl,ri->sikl", mid.reshape(len(mid), *kernel(mid)), down.flatten(1)) if fits else down
    if (
        fits
        and kernel(down) == kernel(layer.weight)
        and kernel(up) == (len(down), 1, 1)
        and len(up) == len(layer.weight)
    ):
        return (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
    raise MRCError(
        f"{file.path} is for another model: {layer.name} is {shapes} in it, and the model's weight is "
        f"{list(layer.weight.shape)}; give a LoRA for this model"
    )


def kernel(tensor: Tensor) -> tuple[int, ...]:
    """Input channels, height and width of a weight; a matrix is a convolution of 1×1."""
    return (*tensor.shape[1:], 1, 1)[:3]


def strength(file: AdapterFile, layer: Layer, configs: dict[str, JsonObject]) -> float:
    """`alpha / r`: of the file's own alpha, or of the settings that PEFT saved; 1 where nothing says otherwise."""
    rank = len(layer.tensors["down"])
    alpha = layer.tensors.get("alpha")
    if alpha is not None:
        if alpha.numel() != 1:
            raise MRCError(f"{file.path}: alpha of {layer.name} has {alpha.numel()} numbers, not one; copy it again")
        return alpha.item() / rank
    part, _, name = layer.name.partition(".")
    config, name = (configs[part], name) if part in configs else (configs.get(""), layer.name)
    if config is None:
        return 1.0
    value = next((v for key, v in config["alpha_pattern"].items() if f".{name}".endswith(f".{key}")), None)
    value = config.get("lora_alpha") if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MRCError(f"{file.path}: its settings give {layer.name} the lora_alpha {value!r:.40}; copy them again")
    return value / (math.sqrt(rank) if config.get("use_rslora") else rank)


def settings(file: AdapterFile) -> dict[str, JsonObject]:
    """What PEFT saved of its settings: by part of the model in a file of diffusers, under "" in one of PEFT.

    Raises:
        MRCError: a file of PEFT without them, or settings of another adapter than a plain LoRA.
    """
    configs: dict[str, JsonObject] = {}
    if any(key.startswith(PEFT_PREFIX) for key in file.tensors):
        configs[""] = read_json(file.path.with_name(PEFT_CONFIG), "copy it too: it has alpha")
    elif DIFFUSERS_CONFIG in file.metadata:
        try:
            for key, value in json.loads(file.metadata[DIFFUSERS_CONFIG]).items():
                part, _, name = key.partition(".")
                configs.setdefault(part, {})[name] = value
        except (ValueError, AttributeError, RecursionError) as error:
            raise MRCError(
                f"{file.path}: {DIFFUSERS_CONFIG} in its header is damaged ({error}); copy it again"
            ) from None
    for config in configs.values():
        kind, start = config.get("peft_type", "LORA"), config.get("init_lora_weights")
        if kind != "LORA" or start not in PLAIN_STARTS:
            raise MRCError(
                f"{file.path} is an adapter of type {kind!r:.40} that starts from {start!r:.40}, which is no plain "
                "LoRA; convert it to one with peft"
            )
        alphas = config["alpha_pattern"] = config.get("alpha_pattern") or {}
        if not isinstance(alphas, dict) or not all(re.fullmatch(r"[\w.]+", key) for key in alphas):
            raise MRCError(f"{file.path}: alpha_pattern {alphas!r:.80} is not of names of layers; write them out")
    return configs
