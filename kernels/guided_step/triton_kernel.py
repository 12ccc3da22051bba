"""`guided_step` on a GPU: one launch, every value read and written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def guided_step_kernel(
    noise, guidance, latents, data, fresh, coefficients, data_coefficients, input_scale, item, sample,
    rows, inputs, size, HAS_FRESH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1)
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    epsilon = tl.zeros([BLOCK], tl.float32)
    for row in range(rows):
        weight = tl.load(guidance + image * rows + row)
        end = tl.where(weight != 0.0, size, 0)  # another image's branch is not read: its NaN stays there
        value = tl.load(noise + row * size + offset, mask=offset < end, other=0.0)
        epsilon += weight * value.to(tl.float32)
    at = image * size + offset
    before = tl.load(latents + at, mask=inside)
    after = tl.load(coefficients) * before + tl.load(coefficients + 1) * epsilon
    after += tl.load(coefficients + 2) * tl.load(data + at, mask=inside)
    if HAS_FRESH:
        after += tl.load(coefficients + 3) * tl.load(fresh + at, mask=inside)
    tl.store(latents + at, after, mask=inside)
    tl.store(data + at, tl.load(data_coefficients) * before + tl.load(data_coefficients + 1) * epsilon, mask=inside)
    scaled = tl.load(input_scale) * after
    for row in range(inputs):
        end = tl.where(tl.load(item + row) == image, size, 0)
        # the second half holds the source latents
        tl.store(sample + row * 2 * size + offset, scaled.to(sample.dtype.element_ty), mask=offset < end)


def guided_step(
    noise: Tensor, guidance: Tensor, latents: Tensor, data: Tensor, fresh: Tensor | None, coefficients: Tensor,
    data_coefficients: Tensor, input_scale: Tensor, item: Tensor, sample: Tensor,
) -> None:  # fmt: skip
    """As `kernels.guided_step.guided_step` on tensors of one device, in place.

    `noise` and `sample` may be half precision, all else is float32; `input_scale` is a tensor of one value.
    """
    size = latents[0].numel()
    grid = (triton.cdiv(size, BLOCK), len(latents))
    guided_step_kernel[grid](
        noise.contiguous(), guidance.contiguous(), latents, data, fresh if fresh is not None else latents,
        coefficients.to(torch.float32), data_coefficients.to(torch.float32), input_scale.to(torch.float32), item,
        sample, len(noise), len(sample), size, HAS_FRESH=fresh is not None, BLOCK=BLOCK,
    )  # fmt: skip
