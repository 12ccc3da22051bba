"""PyTorch feature maps as the native kernels take them (csrc/mrc_kernels.h)."""

import ctypes

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


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
    """Channels last if `hidden` `[N, C, h, w]` lies so, contiguous for all else."""
    last = hidden.is_contiguous(memory_format=torch.channels_last) and not hidden.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def wide(tensor: Tensor) -> Tensor:
    """Contiguous float32."""
    return tensor.to(torch.float32).contiguous()


def feature_maps(
    hidden: Tensor, output: Tensor, groups: int, epsilon: float, scale: Tensor, shift: Tensor
) -> FeatureMaps:
    """The structure over `hidden` and `output` `[N, C, h, w]`, gapless and of one layout; float32 `scale`, `shift`."""
    count, channels, height, width = hidden.shape
    return FeatureMaps(
        hidden.data_ptr(), output.data_ptr(), count, channels, height * width,
        layout(hidden) is torch.channels_last,
        TYPES[hidden.dtype], groups, epsilon, scale.data_ptr(), shift.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
