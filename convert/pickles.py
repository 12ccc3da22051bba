"""Tensors of pickled weights, read without running what the pickle says.

PyTorch's `weights_only` builds tensors, numbers, texts and plain containers and refuses everything else.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.errors import MRCError, reason


class Callback:
    """Stands for Lightning's class of that name, which the first Stable Diffusion files name beside their tensors."""


INERT: list[Any] = [(Callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def read_pickle(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a pickled file, mapped where its format allows, and the names of what is none.

    The tensors of an entry `state_dict` are those of the file, as in training states of Lightning.

    Raises:
        MRCError: it is damaged, holds no tensors, or objects that could run code.
    """
    content: object = load(path)
    dropped: list[str] = []
    while isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        dropped += [str(name) for name in content if name != "state_dict"]
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise MRCError(f"{path} holds a {type(content).__name__}, not named tensors; give the weights of a model")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise MRCError(f"{path} holds no tensors; give the weights of a model")
    return tensors, dropped + [str(name) for name in content if str(name) not in tensors]


def load(path: Path) -> object:
    with torch.serialization.safe_globals(INERT):
        try:
            # files older than PyTorch 1.6 are no archives and cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except OSError as error:
            raise MRCError(f"{path} cannot be read ({error}); give the weights of a model") from None
        except Exception as error:  # pickle's, zip's and PyTorch's own
            raise MRCError(f"{path} is not loaded: {fault(error)}") from None


def fault(error: Exception) -> str:
    if "WeightsUnpickler" in str(error) or "Unsupported" in str(error):
        return "it holds other objects than tensors, which could run code; get it as .safetensors from who made it"
    return f"it is truncated or damaged ({reason(error)}); copy it again"
