"""The parameters of an edit: written into its PNG, and read back to repeat it (`mrc-edit --again`)."""

import argparse
import hashlib
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ..core.console import VERSION
from ..core.defaults import Defaults
from ..core.errors import MRCError
from ..core.files import object_of, parse_value
from ..core.layout import layout_options
from .backends.exported import ExportBackend
from .engine import Engine
from .images import decoding
from .models import layout_folders
from .request import EditOptions, EditRequest, check_settings
from .sources import Source

KEY = "mrc-edit"  # of the PNG's text that holds the JSON
SAMPLERS = {"euler": "Euler", "euler_ancestral": "Euler a", "ddim": "DDIM", "dpmpp_2m": "DPM++ 2M"}  # in other programs
FIELDS = {"model": str, "model_digest": str, "image": str, "image_digest": str, "instruction": str, "settings": dict}
# Arguments of `mrc-edit` that say what is edited and where it goes, not how
NOT_SETTINGS = frozenset({
    "model", "images", "instruction", "output", "format", "quality", "overwrite", "json", "again", "seed", "num_images",
    "batch_size", "batch", "ray", "workers", "safety", "provenance",
})  # fmt: skip
# Of `mrc-edit`, by the arguments of `Engine.edit`
FLAGS = {
    "reward_scores": "reward", "num_inference_steps": "steps", "guidance_scale": "guidance",
    "image_guidance_scale": "image_guidance",
}  # fmt: skip
REMEDY = "give a PNG that mrc-edit wrote"


def model_digest(engine: Engine, layout: dict[str, Any]) -> str:
    """SHA-256 of the open model: of the manifest, which has those of all files, or of the checkpoint."""
    if isinstance(engine.backend, ExportBackend):
        return hashlib.sha256(json.dumps(asdict(engine.backend.manifest), sort_keys=True).encode()).hexdigest()
    from ..model.checkpoint import checkpoint_digest  # the backend has imported PyTorch

    return checkpoint_digest(engine.backend.folder, **layout_folders(layout))


def runtime_of(engine: Engine) -> dict[str, str]:
    """What computes, as it came out, under the names of the flags."""
    return {"backend": type(engine.backend).__module__.rpartition(".")[2], "precision": engine.backend.precision}


def describe_edits(args: argparse.Namespace, engine: Engine, options: EditOptions) -> dict[str, Any]:
    """The record of a run, without what differs from edit to edit. Defaults are in it as they came out."""
    settings = check_settings(engine.backend, EditRequest(None, args.instruction, **options))
    resolution = engine.backend.geometry.resolution if args.resolution is None else args.resolution
    values = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    came_out = {
        "steps": settings.steps,
        "scheduler": settings.scheduler,
        "guidance": settings.guidance[0],
        "image_guidance": settings.guidance[1],
        "resolution": resolution,
    }
    return {
        "version": VERSION,
        "model": str(args.model),
        "model_digest": model_digest(engine, layout_options(args)),
        "instruction": args.instruction,
        "settings": given | came_out | runtime_of(engine),
    }


def describe_request(
    model: str, digest: str, instruction: str, options: Mapping[str, Any], defaults: Defaults
) -> dict[str, Any]:
    """The record of an edit that was asked for without the command, under the names of its flags, where it has such."""
    came_out: dict[str, Any] = {
        "steps": defaults.num_inference_steps,
        "scheduler": defaults.scheduler,
        "guidance": defaults.guidance_scale,
        "image_guidance": defaults.image_guidance_scale,
    }
    for name, value in options.items():
        if value is not None and value is not False:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            came_out[FLAGS.get(name, name)] = text
    settings = {name: value for name, value in came_out.items() if value is not None}
    digests = {"model": model, "model_digest": digest}
    return {"version": VERSION} | digests | {"instruction": instruction, "settings": settings}


def text_of(record: dict[str, Any], source: Source, seed: int, size: tuple[int, int]) -> PngInfo:
    """The record of one edit as JSON, and in the words of other programs, which show or read it."""
    settings = record["settings"] | {"seed": seed}
    whole = record | {"image": source.name, "image_digest": source.digest(), "settings": settings}
    words = {
        "Steps": settings["steps"],
        "Sampler": SAMPLERS.get(settings.get("scheduler", ""), settings.get("scheduler")),
        "CFG scale": settings["guidance"],
        "Image CFG scale": settings["image_guidance"],
        "Seed": seed,
        "Size": "x".join(map(str, size)),
        "Model hash": record["model_digest"][:10],
        "Model": Path(record["model"]).name.encode(errors="backslashreplace").decode(),
        "Version": VERSION,
    }
    text = PngInfo()
    text.add_text(KEY, json.dumps(whole, default=str))
    told = ", ".join(f"{name}: {value}" for name, value in words.items() if value is not None)
    text.add_text("parameters", f"{record['instruction']}\n{told}")
    return text


def read_parameters(path: Path) -> dict[str, Any]:
    """The record of a PNG that `mrc-edit` wrote.

    Raises:
        MRCError: no such file, or none with parameters that this version understands.
    """
    if not path.is_file():
        raise MRCError(f"{path} is not a file; {REMEDY}")
    content = None
    with decoding(str(path)), suppress(UnidentifiedImageError), Image.open(path, formats=("PNG",)) as image:
        image.load()
        content = image.info.get(KEY)
    if not isinstance(content, str):
        raise MRCError(f"{path} holds no parameters of mrc-edit; {REMEDY}")
    record = object_of(parse_value(content.encode(), path, REMEDY), path, REMEDY)
    for name, kind in FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise MRCError(f"the parameters in {path} have {record.get(name)!r:.40} as {name}; {REMEDY}")
    return record


def flags_of(record: dict[str, Any], known: Collection[str], path: Path) -> list[str]:
    """The settings of a record as words of the command line.

    Args:
        known: names of settings, with `_`.

    Raises:
        MRCError: a setting that `mrc-edit` does not have.
    """
    flags = []
    for name, value in record["settings"].items():
        if name not in known:
            raise MRCError(f"the parameters in {path} have the setting {name[:40]!r}, which {VERSION} does not have")
        flag = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        flags += [flag if one is True else f"{flag}={one}" for one in values if one is not None]
    return flags


def check_same(again: dict[str, Any], record: dict[str, Any], sources: Sequence[Source]) -> None:
    """Warn where model or image is not the one of the edit that is repeated."""
    digests = {"model": {record["model_digest"]}, "image": {source.digest() for source in sources}}
    for kind, found in digests.items():
        if found != {again[f"{kind}_digest"]}:
            what = f"this {kind} is not that of the first edit (its SHA-256 differs), so the edit is not"
            warnings.warn(what, stacklevel=2)
