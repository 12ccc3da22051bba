"""The runtimes that can compute the graphs, and what each needs installed.

A backend is imported when it is chosen, so a missing package of one does not hinder the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ...core.adapters import ADAPTERS, adapter_flags
from ...core.errors import MRCError
from ...core.layout import LAYOUT
from ...core.paths import snapshot
from ..manifest import NAME as MANIFEST
from .base import Backend

__all__ = ["BACKENDS", "Backend", "load_backend", "state_of"]


@dataclass(frozen=True)
class Entry:
    reads: str  # "checkpoint" or "export"
    needs: tuple[str, ...]  # importable modules
    extra: str  # what installs them
    load: Callable[..., Backend]
    options: tuple[str, ...] = ()


def lazy(module: str) -> Callable[..., Backend]:
    return lambda folder, **options: import_module(f".{module}", __name__).load(folder, **options)


TORCH = ("torch", "diffusers", "transformers")
READING = ("decode", "template", "llm_precision")  # of SmartEdit
EXPORT_READING = ("reader", *READING)  # of an export of it
BACKENDS = {
    "eager": Entry("checkpoint", TORCH, "torch", lazy("eager"), ("device", "threads", *LAYOUT, *ADAPTERS, *READING)),
    "torch": Entry(
        "checkpoint", TORCH, "torch", lazy("torch"), ("device", "compile", "threads", *LAYOUT, *ADAPTERS, *READING)
    ),
    "onnxruntime": Entry(
        "export",
        ("onnxruntime",),
        "cpu or gpu",
        lazy("onnxruntime"),
        ("provider", "provider_options", "sizes", "max_batch", "threads", *EXPORT_READING),
    ),
    "openvino": Entry("export", ("openvino",), "openvino", lazy("openvino"), ("shapes", "threads", *EXPORT_READING)),
    "tensorrt": Entry("export", ("cuda",), "trt-rtx or trt", lazy("tensorrt"), EXPORT_READING),
}


def state_of(name: str) -> str:
    """One phrase on whether backend `name` can be used here, and what installs what is missing."""
    entry = BACKENDS[name]
    missing = [module for module in entry.needs if find_spec(module) is None]
    if missing:
        return f"needs {', '.join(missing)}: pip install 'mrc-edit[{entry.extra.split()[0]}]' (extra {entry.extra})"
    return "available"


def checkpoint_backend(device: object) -> str:
    """The fastest backend for a checkpoint on a GPU, the ground truth on a CPU."""
    if find_spec("torch") is None or str(device).startswith("cpu"):
        return "eager"
    import torch

    return "torch" if torch.cuda.is_available() else "eager"


def entry_for(model: str | Path, kind: str, name: str, options: Mapping[str, object]) -> Entry:
    """The backend `name`, or what fits for "auto", which opens a `kind` of folder.

    Args:
        model: what to call the folder in messages.
        options: the backend's own.

    Raises:
        MRCError: an unknown or unavailable backend, one for the other kind, or without such an option.
    """
    if name == "auto":
        name = "onnxruntime" if kind == "export" else checkpoint_backend(options.get("device"))
    if name not in BACKENDS:
        raise MRCError(f"backend is {name!r}; choose auto, {', '.join(BACKENDS)}")
    entry = BACKENDS[name]
    if (state := state_of(name)) != "available":
        raise MRCError(f"backend {name} cannot be used here: {state}")
    if entry.reads != kind:
        advice = "run mrc-export first" if kind == "checkpoint" else "give the checkpoint it was exported from"
        raise MRCError(f"backend {name} reads a {entry.reads} folder and {model} is a {kind} folder; {advice}")
    if kind == "export" and (added := [name for name in ADAPTERS if name in options]):
        flags = adapter_flags(**{name: options[name] for name in added})
        raise MRCError(
            f"{model} is an export, whose graphs hold derived weights: {' and '.join(added)} cannot be added. Export "
            f"the checkpoint once more with them: mrc-export CHECKPOINT OUT {flags}; or open the checkpoint itself"
        )
    if unknown := set(options) - set(entry.options):
        own = ", ".join(entry.options) or "none"
        raise MRCError(f"backend {name} has no option {', '.join(sorted(unknown))}; its own are: {own}")
    return entry


def load_backend(folder: Path, name: str, precision: str | None = None, **options: object) -> Backend:
    """Open a checkpoint or export folder with backend `name`, or with what fits it for "auto".

    Raises:
        MRCError: neither kind of folder, or as `entry_for`.
    """
    folder = snapshot(folder)
    if (folder / MANIFEST).is_file():
        kind = "export"
    elif (folder / "model_index.json").is_file() or folder.is_file():
        kind = "checkpoint"
    else:
        raise MRCError(
            f"{folder} is neither a checkpoint (model_index.json) nor an export ({MANIFEST}); "
            "give a checkpoint folder, or the folder that mrc-export wrote"
        )
    entry = entry_for(folder, kind, name, options)
    if kind == "checkpoint":
        backend = entry.load(folder, precision=precision, **options)
        backend.folder = folder
        return backend
    reading = {name: options.pop(name) for name in EXPORT_READING if name in options}
    manifest = (folder / MANIFEST).read_bytes()
    try:
        backend = entry.load(folder, precision=precision, **options)
    except MRCError:
        if (folder / MANIFEST).read_bytes() == manifest:
            raise
        backend = entry.load(folder, precision=precision, **options)  # another export took its place meanwhile
    if reading:
        backend.reader = import_module(".reading", __name__).export_reader(folder, **reading)
    return backend
