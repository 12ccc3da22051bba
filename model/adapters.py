"""A checkpoint with what is added to it at load."""

from collections.abc import Mapping
from pathlib import Path

from ..core.adapters import Adapters
from .checkpoint import Checkpoint, load_checkpoint
from .embeddings import add_embeddings
from .lora import merge_loras


def load_adapted(
    folder: str | Path,
    lora: Mapping[str | Path, float] | None = None,
    embeddings: Mapping[str, str | Path] | None = None,
) -> tuple[Checkpoint, Adapters]:
    """Load a checkpoint folder in float32 and add to it.

    Args:
        lora: scales by LoRA file.
        embeddings: files of textual inversion by token.

    Returns:
        The checkpoint, and what was added.

    Raises:
        MRCError: as `load_checkpoint`, `add_embeddings` and `merge_loras`.
    """
    checkpoint = load_checkpoint(folder)
    added = add_embeddings(checkpoint, embeddings or {})
    return checkpoint, Adapters(merge_loras(checkpoint, lora or {}), added)
