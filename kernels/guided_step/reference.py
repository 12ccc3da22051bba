"""The definition of `guided_step`, for anyone to check against docs/mathematics.md."""

import numpy as np


def guided_step(
    noise, guidance, latents, data, fresh, coefficients, data_coefficients, input_scale, item, sample
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the new latents, data and sample; arguments as in the kernel, which works in place."""
    epsilon = np.einsum("bn,nchw->bchw", guidance, noise)
    a, b, c, e = coefficients
    p, q = data_coefficients
    new_latents = a * latents + b * epsilon + c * data + (0 if fresh is None else e * fresh)
    new_data = p * latents + q * epsilon
    new_sample = np.concatenate([input_scale * new_latents[item], sample[:, latents.shape[1] :]], axis=1)
    return new_latents, new_data, new_sample
