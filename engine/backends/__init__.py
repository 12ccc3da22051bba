"""The runtimes that can compute the graphs, and what each needs installed.

A backend is imported when it is chosen, so a missing package of one does not hinder the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from ...core.errors import MRCError
from ..manifest import NAME as MANIFEST
from ..manifest import Geometry


class Backend(Protocol):
    """One method a graph; arrays are numpy, float32 or int64, shapes as in `engine.contract`."""

    geometry: Geometry
    scheduler: dict
    tokenizer: Tokenizer
    shallow: bool  # whether `unet` takes deep features

    def text_encoder(self, *, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids `[T, L]` → states `[T, L, D]`, pooled `[T, D]`."""

    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        """Images `[B, 3, H, W]` → source latents `[B, 4, h, w]`."""

    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        """Latents `[B, 4, h, w]` → images `[B, 3, H, W]`; not finite if even float32 overflows."""

    def conditioner(
        self,
        *,
        timesteps: np.ndarray,
        text_states: np.ndarray,
        reward_scores: np.ndarray,
        reward_text: np.ndarray,
    ) -> Any:
        """All that depends on texts `[T, L, D]`, rewards `[R, 3]`, `[R, D]` and timesteps `[S]`."""

    def layout(self, *, conditions: Any, text: np.ndarray, reward: np.ndarray) -> Any:
        """The conditioner's result for N branches (`text`, `[N]` into T) and P inputs (`reward`, `[P]` into R)."""

    def unet(
        self, *, conditions: Any, step: int, sample: np.ndarray, branch: np.ndarray, guidance: np.ndarray, deep: Any
    ) -> tuple[np.ndarray, Any]:
        """Sample `[P, 8, h, w]`, branch `[N]`, guidance `[G, N]` → noise `[G, 4, h, w]` and deep features.

        `deep`: None, or the features of an earlier call with the same branches, to go on from. Both outputs
        may be overwritten by the next call of the same kind and shapes.
        """

    @property
    def unet_loop(self) -> Callable[..., np.ndarray] | None:
        """All steps in one call in place of `unet`, as `GraphBackend.steps`; None for a step at a time."""


@dataclass(frozen=True)
class Entry:
    reads: str  # "checkpoint" or "export"
    needs: tuple[str, ...]  # importable modules
    extra: str  # what installs them
    load: Callable[..., Backend] | None  # None: not part of this version
    options: tuple[str, ...] = ()


def lazy(module: str) -> Callable[..., Backend]:
    return lambda folder, **options: import_module(f".{module}", __name__).load(folder, **options)


BACKENDS = {
    "eager": Entry("checkpoint", ("torch", "diffusers", "transformers"), "torch", lazy("eager")),
    "onnxruntime": Entry(
        "export", ("onnxruntime",), "cpu or gpu", lazy("onnxruntime"), ("provider", "provider_options", "loop")
    ),
    "torch": Entry("checkpoint", ("torch", "diffusers", "transformers"), "torch", lazy("torch"), ("loop",)),
    "openvino": Entry("export", ("openvino",), "openvino", lazy("openvino"), ("loop",)),
    "tensorrt": Entry("export", ("tensorrt",), "trt", None),
    "tensorrt_rtx": Entry("export", ("tensorrt_rtx",), "trt-rtx", None),
}
AUTO = {"checkpoint": "eager", "export": "onnxruntime"}


def state_of(name: str) -> str:
    """One phrase on whether backend `name` can be used here, and what installs what is missing."""
    entry = BACKENDS[name]
    if entry.load is None:
        return "not part of this version"
    missing = [module for module in entry.needs if find_spec(module) is None]
    if missing:
        return f"needs {', '.join(missing)}: pip install 'mrc-edit[{entry.extra.split()[0]}]' (extra {entry.extra})"
    return "available"


def load_backend(folder: Path, name: str, precision: str | None = None, **options: Any) -> Backend:
    """Open a checkpoint or export folder with backend `name`, or with what fits it for "auto".

    Raises:
        MRCError: neither kind of folder, an unknown or unavailable backend, or one for the other kind.
    """
    if (folder / MANIFEST).is_file():
        kind = "export"
    elif (folder / "model_index.json").is_file():
        kind = "checkpoint"
    else:
        raise MRCError(
            f"{folder} is neither a checkpoint (model_index.json) nor an export ({MANIFEST}); "
            "give a checkpoint folder, or the folder that mrc-export wrote"
        )
    name = AUTO[kind] if name == "auto" else name
    if name not in BACKENDS:
        raise MRCError(f"backend is {name!r}; choose auto, {', '.join(BACKENDS)}")
    entry = BACKENDS[name]
    if (state := state_of(name)) != "available" or entry.load is None:
        raise MRCError(f"backend {name} cannot be used here: {state}")
    if entry.reads != kind:
        advice = "run mrc-export first" if kind == "checkpoint" else "give the checkpoint it was exported from"
        raise MRCError(f"backend {name} reads a {entry.reads} folder and {folder} is a {kind} folder; {advice}")
    if unknown := set(options) - set(entry.options):
        own = ", ".join(entry.options) or "none"
        raise MRCError(f"backend {name} has no option {', '.join(sorted(unknown))}; its own are: {own}")
    return entry.load(folder, precision=precision, **options)
