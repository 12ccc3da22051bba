"""`sampler_step` of the pack on addresses in device memory: no PyTorch."""

import ctypes

from ..pack import call

FLOAT32 = 0  # MRC_FLOAT32


def sampler_step(
    kind: int, noise: int, latents: int, denoised: int, fresh_noise: int | None, batch: int, size: int,
    coefficients: int, denoised_coefficients: int, input_scale: int, item: int, inputs: int, sample: int, stream: int,
) -> None:  # fmt: skip
    """As `mrc_cuda_sampler_step` (csrc/mrc_cuda.h), on `stream`; a CUDA context must be current.

    Raises:
        NotInPack: the pack has no kernel for these arguments.
        MRCError: it failed for another reason.
    """
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    call(
        "mrc_cuda_sampler_step", ctypes.c_int32(kind), pointer(noise), pointer(latents), pointer(denoised),
        pointer(fresh_noise), long(batch), long(size), pointer(coefficients), pointer(denoised_coefficients),
        pointer(input_scale), pointer(item), long(inputs), pointer(sample), pointer(stream),
    )  # fmt: skip
