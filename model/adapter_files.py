"""Files of LoRA and of textual inversion: safetensors only, read once, so that the digest is of what is used."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ..core.errors import MRCError, reason
from ..core.schema import JsonObject
from .weights import PICKLES


@dataclass(frozen=True)
class AdapterFile:
    """The content of one file; floating point tensors are float32."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: JsonObject  # of the file's header: texts by name
    sha256: str


def read_adapter_file(path: Path) -> AdapterFile:
    """Read a safetensors file.

    Raises:
        MRCError: it is missing, pickled, truncated or no safetensors file, holds nothing, or a tensor in it is not of
            finite floating point numbers.
    """
    if path.suffix in {pattern.removeprefix("*") for pattern in PICKLES}:
        raise MRCError(f"{path} is pickled, which can run code, and is never loaded; convert it to safetensors")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MRCError(f"{path} cannot be read ({error.strerror}); give a safetensors file") from None
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except Exception as error:  # safetensors' own, and many of torch for types that it does not know
        raise MRCError(
            f"{path} is no safetensors file, or truncated or damaged ({reason(error)}); copy it again"
        ) from None
    if not tensors:
        raise MRCError(f"{path} holds no tensors; copy it again")
    for key, value in tensors.items():
        tensors[key] = value.float()
        if not (value.is_floating_point() and tensors[key].isfinite().all()):
            raise MRCError(f"{path}: tensor {key} holds other things than finite numbers; copy it again")
    return AdapterFile(path, tensors, header.get("__metadata__", {}), hashlib.sha256(content).hexdigest())
