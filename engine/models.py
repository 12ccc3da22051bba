"""Models by name: a folder here, a model of this package, or a repository on the Hugging Face hub.

Of a repository the files that the engine reads are fetched, no others: configurations, tokenizer, one variant of the
weights as safetensors, or what an export's backend runs. Its code and pickles are never fetched.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import hub
from ..core.errors import MRCError
from .backends import entry_for
from .manifest import NAME as MANIFEST
from .shipped import MODELS, shipped

INDEX, SMARTEDIT = "model_index.json", "smartedit.json"
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}  # of weights
SETTINGS = re.compile(
    r"model_index\.json|defaults\.json|scheduler/scheduler_config\.json|(unet|vae|text_encoder)/config\.json"
    r"|tokenizer/[\w-]+\.(json|txt)"
)
EMPTY: Mapping[str, object] = {}


def model_folder(
    model: str | Path, backend: str = "auto", precision: str | None = None, options: Mapping[str, object] = EMPTY
) -> Path:
    """The folder of a model.

    Args:
        model: a folder, which goes first; the name of a shipped model; or OWNER/NAME of the hub, where /FOLDER of a
            folder in it may follow, and @REVISION. A `Path` is always a folder.
        backend, precision, options: as of `Engine.from_pretrained`; what they do not need is not fetched.

    Raises:
        MRCError: neither folder nor name, or as `core.hub.snapshot`; a repository that holds no model that the engine
            reads, no safetensors, or several variants and no plain one; or as `load_backend`.
    """
    if str(model) in MODELS or isinstance(model, Path) or Path(model).exists():
        return shipped(model, backend)
    if not hub.is_hub_name(model):
        raise MRCError(
            f"{model} is neither a folder nor a name such as {', '.join(MODELS)} or OWNER/NAME of the Hugging Face "
            "hub; give the folder of a checkpoint or export, or a name"
        )

    def choose(files: list[str]) -> list[str]:
        kind = kind_of(model, files)
        entry_for(model, kind, backend, options)
        variant = options.get("variant")
        return export_files(files, backend, precision) if kind == "export" else checkpoint_files(model, files, variant)

    return hub.snapshot(model, choose)


def layout_folders(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with `vae` and `base` as paths; those that are names of the hub are fetched.

    Args:
        options: may hold `variant`, the VAE's too where it has it; the rest passes through.

    Raises:
        MRCError: as `core.hub.snapshot`; a repository without the VAE or without the tokenizer.
    """
    choosers: dict[str, hub.Choose] = {
        "vae": lambda files: vae_files(str(options["vae"]), files, options.get("variant")),
        "base": lambda files: base_files(str(options["base"]), files),
    }
    return {name: fetched(value, choosers.get(name)) for name, value in options.items()}


def fetched(value: Any, choose: hub.Choose | None) -> Any:
    """The path of a model's part that is named on the hub; else `value`."""
    if choose is None or not isinstance(value, str) or Path(value).exists() or Path(value).suffix == ".safetensors":
        return value
    return hub.snapshot(value, choose) if hub.is_hub_name(value) else value


def vae_files(name: str, files: list[str], variant: object) -> list[str]:
    """Of a VAE's repository, or of a whole model's, the settings and one variant of the weights."""
    folder = "vae/" if "vae/config.json" in files else ""
    if f"{folder}config.json" not in files:
        raise MRCError(f"{name} on the hub has no config.json of a VAE; name another")
    own = {file if folder else f"vae/{file}": file for file in files}
    return [f"{folder}config.json", *(own[file] for file in weights(name, "vae", variants("vae", [*own]), variant))]


def base_files(name: str, files: list[str]) -> list[str]:
    """Of a model's repository the tokenizer and the settings, which a single file lacks."""
    found = [file for file in files if SETTINGS.fullmatch(file)]
    if not any(file.startswith("tokenizer/") for file in found):
        raise MRCError(f"{name} on the hub has no tokenizer; name a model in diffusers' layout")
    return found


def kind_of(model: str, files: list[str]) -> str:
    if MANIFEST in files:
        return "export"
    if SMARTEDIT in files:
        raise MRCError(
            f"{model} on the hub is a SmartEdit folder, and a name fetches no language model; download it and give "
            "the folder"
        )
    if INDEX in files:
        return "checkpoint"
    name, at, revision = model.partition("@")
    ends = tuple(f"/{file}" for file in (INDEX, MANIFEST))
    inside = [f"{name}/{file.rpartition('/')[0]}{at}{revision}" for file in sorted(files) if file.endswith(ends)]
    advice = f"a folder in it ({', '.join(inside)})" if inside else "another"
    raise MRCError(
        f"{model} on the hub has neither {INDEX} nor {MANIFEST}, so it is no checkpoint in diffusers' layout and no "
        f"export; name {advice}"
    )


def export_files(files: list[str], backend: str, precision: str | None) -> list[str]:
    """Of an export's files those that a backend runs: engines and int8 graphs only where they are asked for."""
    left = [r"tensorrt/"] * (backend != "tensorrt") + [r"\w+_int8/"] * (precision != "int8")
    wanted = re.compile(rf"{MANIFEST}|{''.join(f'(?!{folder})' for folder in left)}[\w-]+/[\w.-]+")
    return [file for file in files if wanted.fullmatch(file)]


def checkpoint_files(model: str, files: list[str], variant: object) -> list[str]:
    """Of a checkpoint's files the settings and, as safetensors, one variant of the weights."""
    parts = {part: variants(part, files) for part in STEMS}
    if variant is not None and variant not in parts["unet"]:
        others = ", ".join(sorted(filter(None, parts["unet"]))) or "none"
        raise MRCError(f"{model} on the hub has no variant {variant} of its U-Net; its variants: {others}")
    settings = [file for file in files if SETTINGS.fullmatch(file)]
    return settings + [file for part, found in parts.items() for file in weights(model, part, found, variant)]


def variants(part: str, files: list[str]) -> dict[str, list[str]]:
    """The safetensors files of a part's weights by variant; "" is the plain one. Of whole and in shards: the whole."""
    stem = re.escape(STEMS[part])
    found: dict[str, list[str]] = {}
    whole: dict[str, list[str]] = {}
    pattern = re.compile(
        rf"{part}/{stem}(?:\.(?P<variant>[\w-]+?))?(?P<shard>-\d+-of-\d+)?\.safetensors"
        rf"|{part}/{stem}\.safetensors\.index(?:\.(?P<of>[\w-]+))?\.json"
    )
    for file in files:
        if match := pattern.fullmatch(file):
            variant = match["variant"] or match["of"] or ""
            found.setdefault(variant, []).append(file)
            if file.endswith(".safetensors") and not match["shard"]:
                whole[variant] = [file]
    return found | whole


def weights(model: str, part: str, found: dict[str, list[str]], variant: object) -> list[str]:
    """The files of one variant of a part: a part that lacks the one asked for has the plain one, as in diffusers."""
    for name in (variant, ""):
        if isinstance(name, str) and name in found:
            return found[name]
    if not found:
        raise MRCError(
            f"{model} on the hub has no safetensors in {part}; pickled weights can run code and are never loaded: "
            "download it and run mrc-convert checkpoint"
        )
    if len(found) > 1:
        raise MRCError(f"{model} on the hub has the variants {', '.join(sorted(found))}; choose one (--variant)")
    return next(iter(found.values()))
