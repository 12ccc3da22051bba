"""`sampler_step` on a GPU: one launch, every value read and written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # values of an image that a program takes


@triton.jit
def sampler_step_kernel(
    noise, latents, denoised, fresh_noise, coefficients, denoised_coefficients, input_scale, item, sample,
    inputs, size, HAS_FRESH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1)
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    at = image * size + offset
    before = tl.load(latents + at, mask=inside)
    epsilon = tl.load(noise + at, mask=inside).to(tl.float32)
    after = tl.load(coefficients) * before + tl.load(coefficients + 1) * epsilon
    after += tl.load(coefficients + 2) * tl.load(denoised + at, mask=inside)
    if HAS_FRESH:
        after += tl.load(coefficients + 3) * tl.load(fresh_noise + at, mask=inside)
    tl.store(latents + at, after, mask=inside)
    result = tl.load(denoised_coefficients) * before + tl.load(denoised_coefficients + 1) * epsilon
    tl.store(denoised + at, result, mask=inside)
    scaled = tl.load(input_scale) * after
    for row in range(inputs):
        end = tl.where(tl.load(item + row) == image, size, 0)
        # the second half of a row is the source latents
        tl.store(sample + row * 2 * size + offset, scaled.to(sample.dtype.element_ty), mask=offset < end)


def sampler_step(
    noise: Tensor, latents: Tensor, denoised: Tensor, fresh_noise: Tensor | None, coefficients: Tensor,
    denoised_coefficients: Tensor, input_scale: Tensor, item: Tensor, sample: Tensor,
) -> None:  # fmt: skip
    """As the reference; all but `noise` and the coefficients must be contiguous."""
    size = latents[0].numel()
    grid = (triton.cdiv(size, BLOCK), len(latents))
    sampler_step_kernel[grid](
        noise.contiguous(), latents, denoised, latents if fresh_noise is None else fresh_noise,
        coefficients.to(torch.float32), denoised_coefficients.to(torch.float32), input_scale.to(torch.float32), item,
        sample, len(sample), size, HAS_FRESH=fresh_noise is not None, BLOCK=BLOCK,
    )  # fmt: skip
