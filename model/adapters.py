"""A checkpoint with what is added to it at load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.adapters import Adapters
from .checkpoint import Checkpoint, load_checkpoint
from .lora import merge_loras


def load_adapted(
    folder: str | Path, lora: Mapping[str | Path, float] | None = None, **layout: Any
) -> tuple[Checkpoint, Adapters]:
    """Load a checkpoint in float32 and add to it.

    Args:
        lora: scales by LoRA file.
        layout: keywords of `load_checkpoint`.

    Returns:
        The checkpoint, and what was added.

    Raises:
        MRCError: as `load_checkpoint` and `merge_loras`.
    """
    checkpoint = load_checkpoint(folder, **layout)
    return checkpoint, Adapters(lora=merge_loras(checkpoint, lora or {}))
