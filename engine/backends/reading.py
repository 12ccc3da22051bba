"""SmartEdit's reading of an image and an instruction, for the PyTorch backends."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...core.errors import MRCError
from ...core.memory import check_memory
from ...model.checkpoint import checkpoint_digest
from ...model.smartedit.bim import text_states
from ...model.smartedit.folder import SmartEdit, dtype_name, is_smartedit, load_smartedit
from ...model.smartedit.language import DECODES, MOST_TOKENS, Decode, image_states
from ...model.smartedit.tokens import check_instruction, encode
from ...model.smartedit.vision import clip_features, pixel_values
from ..manifest import read_manifest
from .base import Reader
from .devices import float32_products, torch_device
from .recent import Recent

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEPT = 16  # pairs of image and instruction that are not read again


def load_reader(
    folder: Path, device: torch.device, decode: Decode = "template", template: int = 0, llm_precision: str | None = None
) -> "SmartEditReader | None":
    """The reader of a SmartEdit folder; None for any other.

    Args:
        decode, template: as `model.smartedit.language.image_states`.
        llm_precision: float32 or bfloat16; None for bfloat16 on a GPU and float32 on a CPU.

    Raises:
        MRCError: as `load_smartedit`, an option that cannot be, or options for a model that is no SmartEdit one.
    """
    if not is_smartedit(folder):
        if (decode, template, llm_precision) != ("template", 0, None):
            raise MRCError(f"decode, template and llm_precision are for SmartEdit, and {folder} is another model")
        return None
    if decode not in DECODES:
        raise MRCError(f"decode is {decode!r}; choose one of {', '.join(DECODES)}")
    name = llm_precision or ("bfloat16" if device.type == "cuda" else "float32")
    if name not in PRECISIONS:
        raise MRCError(f"llm_precision is {llm_precision!r}; choose one of {', '.join(PRECISIONS)}")
    model = load_smartedit(folder, PRECISIONS[name])
    if isinstance(template, bool) or not isinstance(template, int) or not 0 <= template < len(model.wording.templates):
        raise MRCError(f"template is {template!r}; {folder} has {len(model.wording.templates)}, from 0")
    return SmartEditReader(model, device, decode, template)


def export_reader(export: Path, reader: str | Path | None = None, **options: Any) -> "SmartEditReader":
    """The reader for an export of a SmartEdit folder.

    Args:
        reader: that folder.
        options: as of `load_reader`.

    Raises:
        MRCError: no folder, another than the one that was exported, or as `load_reader`.
    """
    manifest = read_manifest(export)
    if not manifest.geometry.feature_channels:
        raise MRCError(f"{export} is no export of SmartEdit; leave out reader, decode, template and llm_precision")
    if reader is None:
        raise MRCError(f"{', '.join(options)} without reader; give reader=FOLDER, the folder that was exported")
    folder = Path(reader)
    if checkpoint_digest(folder) != manifest.checkpoint:
        raise MRCError(f"{export} was exported from another checkpoint than {folder}; give that, or export this one")
    found = load_reader(folder, torch_device(None), **options)
    assert found is not None
    return found


class SmartEditReader(Reader):
    """Reads each pair of image and instruction once; the last pairs stay."""

    def __init__(self, model: SmartEdit, device: torch.device, decode: Decode = "template", template: int = 0) -> None:
        self.model, self.device, self.decode, self.template = model, device, decode, template
        self.side = model.vision.config.image_size
        parts: tuple[nn.Module, ...] = (model.vision, model.projector, model.llm, model.qformer, model.bim)
        if device.type == "cuda":
            needed = sum(parameter.nbytes for part in parts for parameter in part.parameters())
            free = torch.cuda.mem_get_info(device)[0]
            check_memory(needed, f"SmartEdit in {dtype_name(model.llm.dtype)}", free, "the GPU's memory")
        for part in parts:
            part.to(device)
        self.read_before: Recent[tuple[Tensor, Tensor]] = Recent(KEPT)

    def check(self, instruction: str) -> None:
        check_instruction(instruction)
        config = self.model.llm.config
        length = len(encode(self.model.tokenizer, self.model.wording.prompt(self.template, instruction)))
        length += (self.side // self.model.vision.config.patch_size) ** 2 + MOST_TOKENS
        if length > config.max_position_embeddings:
            raise MRCError(
                f"the instruction makes a prompt of {length} places with its image and answer and the language model "
                f"has {config.max_position_embeddings}; shorten it",
                argument="instruction",
            )

    def read(
        self, *, pictures: list[Image.Image], instructions: list[str], seeds: list[int], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode(), float32_products(self.device):
            pairs = [self.pair(*row) for row in zip(pictures, instructions, seeds, strict=True)]
            features, queries = (torch.stack(values) for values in zip(*pairs, strict=True))
            text, image = self.model.bim(features, queries, *size)
            return text_states(queries, text).cpu().numpy(), image.cpu().numpy()

    def pair(self, picture: Image.Image, instruction: str, seed: int) -> tuple[Tensor, Tensor]:
        """F `[N, M]` and Q `[L, D]`."""
        seed = seed if self.decode == "sample" else 0
        key = hashlib.sha256(picture.tobytes()).digest(), instruction, seed
        return self.read_before.get(key, lambda: self.read_pair(picture, instruction, seed))

    def read_pair(self, picture: Image.Image, instruction: str, seed: int) -> tuple[Tensor, Tensor]:
        pixels = pixel_values(picture, self.side).to(self.device)
        features = clip_features(self.model.vision, pixels[None])[0]
        states = image_states(self.model, features, instruction, self.decode, self.template, seed)
        return features, self.model.qformer(states[None])[0]
