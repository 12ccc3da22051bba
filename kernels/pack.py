"""The CUDA kernels compiled ahead of time (csrc/mrc_cuda.h): no Triton, no compiler, no wait at the first call."""

import ctypes
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..core.errors import MRCError
from .feature_maps import TYPES, layout
from .native import find

LIBRARY = "libmrc_cuda.so"
DECLINED = (16, 17)  # MRC_CUDA_NOT_IN_PACK, MRC_CUDA_BAD_POINTER: for Triton


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
    """Whether the pack can be used; warns where it was built and cannot."""
    if find(LIBRARY) is None:
        return False
    if why := problem():
        warnings.warn(f"{why}; Triton or the references do its work", stacklevel=2)
    return not why


class FeatureMaps(ctypes.Structure):
    """`mrc_cuda_feature_maps`."""

    _fields_ = (
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("positions", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
    )


def feature_maps(
    hidden: Tensor, output: Tensor, groups: int, epsilon: float, scale: Tensor, shift: Tensor
) -> FeatureMaps:
    """The structure over `hidden` and `output` `[N, C, h, w]`, channels last, all of one type.

    Raises:
        NotInPack: `hidden` is not channels last.
    """
    if layout(hidden) is not torch.channels_last:
        raise NotInPack(f"hidden {tuple(hidden.shape)} is not channels last")
    count, channels, height, width = hidden.shape
    return FeatureMaps(
        hidden.data_ptr(), output.data_ptr(), count, channels, height * width,
        TYPES[hidden.dtype], groups, epsilon, scale.data_ptr(), shift.data_ptr(),
    )  # fmt: skip


def pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def run(name: str, tensor: Tensor, *arguments: Any) -> None:
    """Call a function of the library on the device of `tensor` and its current stream.

    Raises:
        NotInPack: it has no kernel for these arguments.
        MRCError: anything else that failed.
    """
    with torch.cuda.device_of(tensor):
        stream = ctypes.c_void_p(torch.cuda.current_stream(tensor.device).cuda_stream)
        status = getattr(library(), name)(*arguments, stream)
    if status:
        raise (NotInPack if status in DECLINED else MRCError)(f"{name} returned {status}: {meaning(status)}")
