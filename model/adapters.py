"""A checkpoint with what is added to it at load."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.adapters import Adapters
from ..core.errors import MRCError
from .checkpoint import Checkpoint, load_checkpoint
from .embeddings import add_embeddings
from .lora import merge_loras, student_defaults
from .smartedit.folder import is_smartedit


def load_adapted(
    model: str | Path,
    lora: Mapping[str | Path, float] | None = None,
    embeddings: Mapping[str, str | Path] | None = None,
    **layout: Any,
) -> tuple[Checkpoint, Adapters]:
    """Load a checkpoint in float32 and add to it.

    Args:
        lora: scales by LoRA file.
        embeddings: files of textual inversion by token.
        layout: other keywords of `load_checkpoint`.

    Returns:
        The checkpoint, with a student's defaults where a LoRA makes one of it, and what was added.

    Raises:
        MRCError: as `load_checkpoint`, `add_embeddings` and `merge_loras`; tokens for SmartEdit, whose instructions
            another model reads.
    """
    if embeddings and is_smartedit(Path(model)):
        raise MRCError(f"{model} is a SmartEdit model, whose language model reads instructions: it takes no embeddings")
    checkpoint = load_checkpoint(model, **layout)
    added = add_embeddings(checkpoint, embeddings or {})
    was_student = checkpoint.unet.embeds_guidance
    merged = merge_loras(checkpoint, lora or {})
    if lora and checkpoint.unet.embeds_guidance and not was_student:
        checkpoint = replace(checkpoint, defaults=student_defaults(lora))
    return checkpoint, Adapters(merged, added)
