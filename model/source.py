"""A checkpoint before it is loaded: where its parts come from. Here a folder in diffusers' layout."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..core.defaults import Defaults, read_defaults
from ..core.errors import MRCError
from ..core.files import read_json
from ..core.paths import check_links
from ..core.schema import JsonObject
from .configs import REMEDY, read_config
from .family import check_pipeline
from .smartedit import CONFIG as SMARTEDIT
from .weights import WEIGHTS, State, read_weights, variant_or_plain


@dataclass(frozen=True)
class Source:
    """Functions that read the parts "unet", "vae" and "text_encoder" by name, and where the rest is.

    Attributes:
        config: the settings of a part.
        weights: the tensors of a part in a dtype, under keys of diffusers old or new.
        place: the folder or file of a part, for messages.
        tokenizer: folder of the tokenizer's files.
        scheduler: its settings, and the file that has them.
        files: all files that the checkpoint is made of, for its digest.
        feature_bias: SmartEdit's, which is added after the U-Net's first layer.
    """

    config: Callable[[str], JsonObject]
    weights: Callable[[str, torch.dtype], State]
    place: Callable[[str], Path]
    tokenizer: Path
    scheduler: Callable[[], tuple[JsonObject, Path]]
    files: Callable[[], list[Path]]
    defaults: Defaults = field(default_factory=Defaults)
    feature_bias: bool = False


def folder_source(folder: Path, variant: str | None = None) -> Source:
    """A checkpoint folder.

    Args:
        variant: of the weights; the U-Net must have it, other parts may have plain weights instead.

    Raises:
        MRCError: it is none, has links that leave it, or is of another family.
    """
    check_is_checkpoint(folder)
    check_links(folder)
    check_pipeline(read_json(folder / "model_index.json", REMEDY), folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"

    def weights(part: str, dtype: torch.dtype) -> State:
        own = variant if part == "unet" else variant_or_plain(folder / part, WEIGHTS[part], variant)
        return read_weights(folder, part, dtype, own)

    return Source(
        config=lambda part: read_config(folder / part / "config.json"),
        weights=weights,
        place=lambda part: folder / part,
        tokenizer=folder / "tokenizer",
        scheduler=lambda: (read_config(scheduler), scheduler),
        files=lambda: files_below(folder),
        defaults=read_defaults(folder),
        feature_bias=(folder / SMARTEDIT).is_file(),
    )


def check_is_checkpoint(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise MRCError(f"{folder} is not a checkpoint: it has no model_index.json; give a diffusers model folder")


def files_below(folder: Path) -> list[Path]:
    """The files of weights and settings in a folder, sorted."""
    kinds = {".safetensors", ".json", ".txt"}
    return sorted(path for path in folder.rglob("*") if path.suffix in kinds and path.is_file())
