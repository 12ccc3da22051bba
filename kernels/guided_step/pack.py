"""`guided_step` on a GPU, compiled ahead of time (csrc/mrc_cuda.h)."""

import ctypes

import torch
from torch import Tensor

from ..feature_maps import TYPES
from ..pack import pointer, run


def guided_step(
    noise: Tensor, guidance: Tensor, latents: Tensor, data: Tensor, fresh: Tensor | None, coefficients: Tensor,
    data_coefficients: Tensor, input_scale: Tensor, item: Tensor, sample: Tensor,
) -> None:  # fmt: skip
    """As `triton_kernel`.

    Raises:
        NotInPack: the pack has no kernel for these arguments.
    """
    noise, item = noise.to(sample.dtype).contiguous(), item.contiguous()
    guidance, table, to_data, scale = (
        tensor.to(torch.float32).contiguous() for tensor in (guidance, coefficients, data_coefficients, input_scale)
    )
    rows, batch, size, inputs = (ctypes.c_int64(n) for n in (len(noise), len(latents), latents[0].numel(), len(sample)))
    run(
        "mrc_cuda_guided_step", latents, TYPES[sample.dtype], pointer(noise), pointer(guidance), rows,
        pointer(latents), pointer(data), pointer(fresh), batch, size, pointer(table), pointer(to_data),
        pointer(scale), pointer(item), inputs, pointer(sample),
    )  # fmt: skip
