"""The CUDA kernels compiled ahead of time (csrc/mrc_cuda.h): no Triton, no compiler, no wait at the first call."""

import ctypes
import warnings
from functools import cache
from typing import TYPE_CHECKING

from ..core.errors import MRCError
from .native import find

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY = "libmrc_cuda.so"
DECLINED = (16, 17)  # MRC_CUDA_NOT_IN_PACK, MRC_CUDA_BAD_POINTER: Triton takes these


class NotInPack(MRCError):
    """The pack has no kernel for these arguments on this GPU."""


@cache
def library() -> ctypes.CDLL:
    """Load the pack once.

    Raises:
        MRCError: it was not built.
    """
    path = find(LIBRARY)
    if path is None:
        raise MRCError(f"{LIBRARY} was not built; docs/kernels.md says how")
    pack = ctypes.CDLL(str(path))
    pack.mrc_cuda_error_string.restype = ctypes.c_char_p
    pack.mrc_cuda_reward_block_workspace.restype = ctypes.c_int64
    return pack


def meaning(status: int) -> str:
    """The library's text for one of its codes."""
    return library().mrc_cuda_error_string(status).decode()


def problem() -> str | None:
    """Why the pack cannot be used here, None where it can."""
    try:
        status = library().mrc_cuda_status()
    except MRCError as error:
        return str(error)
    return f"{LIBRARY} cannot be used: {meaning(status)}" if status else None


@cache
def ready() -> bool:
    """Whether the pack can be used; the first call warns if it was built and cannot."""
    if find(LIBRARY) is None:
        return False
    if why := problem():
        warnings.warn(f"{why}; Triton or the references do its work", stacklevel=2)
    return not why


def call(name: str, *arguments: object) -> None:
    """Call a function of the library; needs no PyTorch.

    Raises:
        NotInPack: it has no kernel for these arguments.
        MRCError: it failed for another reason.
    """
    if status := getattr(library(), name)(*arguments):
        raise (NotInPack if status in DECLINED else MRCError)(f"{name} returned {status}: {meaning(status)}")


def run(name: str, tensor: "Tensor", *arguments: object) -> None:
    """As `call`, on the device of `tensor` and its current stream, which is the last argument."""
    import torch

    with torch.cuda.device_of(tensor):
        call(name, *arguments, ctypes.c_void_p(torch.cuda.current_stream(tensor.device).cuda_stream))
