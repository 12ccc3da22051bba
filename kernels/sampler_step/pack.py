"""`sampler_step` on a GPU, compiled ahead of time (csrc/mrc_cuda.h)."""

import ctypes

import torch
from torch import Tensor

from ..feature_maps import FLOATS, pointer
from ..pack import run


def sampler_step(
    noise: Tensor, latents: Tensor, denoised: Tensor, fresh_noise: Tensor | None, coefficients: Tensor,
    denoised_coefficients: Tensor, input_scale: Tensor, item: Tensor, sample: Tensor,
) -> None:  # fmt: skip
    """As `triton_kernel`.

    Raises:
        NotInPack: the pack has no kernel for these arguments.
    """
    noise, item = noise.to(sample.dtype).contiguous(), item.contiguous()
    step, to_denoised, scale = (
        tensor.to(torch.float32).contiguous() for tensor in (coefficients, denoised_coefficients, input_scale)
    )
    batch, size, inputs = (ctypes.c_int64(n) for n in (len(latents), latents[0].numel(), len(sample)))
    run(
        "mrc_cuda_sampler_step", latents, FLOATS[sample.dtype].code, pointer(noise), pointer(latents),
        pointer(denoised), pointer(fresh_noise), batch, size, pointer(step), pointer(to_denoised), pointer(scale),
        pointer(item), inputs, pointer(sample),
    )  # fmt: skip
