"""PyTorch tensors as the C interfaces take them (csrc/mrc_kernels.h, csrc/mrc_cuda.h)."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor


class FloatType(NamedTuple):
    """One number format that the kernels compute in, under its three names."""

    name: str
    code: int  # MRC_FLOAT32 and the rest
    triton: str


FLOATS = {
    torch.float32: FloatType("float32", 0, "fp32"),
    torch.float16: FloatType("float16", 1, "fp16"),
    torch.bfloat16: FloatType("bfloat16", 2, "bf16"),
}


class FeatureMaps(ctypes.Structure):
    """`mrc_feature_maps`."""

    _fields_ = (
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("positions", ctypes.c_int64),
        ("channels_last", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )


def layout(hidden: Tensor) -> torch.memory_format:
    """The memory format of `hidden` `[N, C, h, w]`: channels last, or contiguous for everything else."""
    last = hidden.is_contiguous(memory_format=torch.channels_last) and not hidden.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def as_float32(tensor: Tensor) -> Tensor:
    """Contiguous float32."""
    return tensor.to(torch.float32).contiguous()


def feature_maps(
    hidden: Tensor, output: Tensor, groups: int, epsilon: float, scale: Tensor, shift: Tensor
) -> FeatureMaps:
    """The structure over `hidden` and `output` `[N, C, h, w]`, both dense and of one layout and dtype.

    `scale` and `shift` `[C]` are float32 for the CPU, of the dtype of `hidden` for the pack.
    """
    count, channels, height, width = hidden.shape
    return FeatureMaps(
        hidden.data_ptr(), output.data_ptr(), count, channels, height * width,
        layout(hidden) is torch.channels_last,
        FLOATS[hidden.dtype].code, groups, epsilon, scale.data_ptr(), shift.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip


def pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    """The address of a tensor's first value; NULL for None."""
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
