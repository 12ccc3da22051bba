"""The definition of `sampler_step`, for anyone to check against docs/mathematics.md.

Shapes: B images, P U-Net inputs, latents h×w of Z channels.
"""

from torch import Tensor


def sampler_step(
    noise: Tensor, latents: Tensor, denoised: Tensor, fresh_noise: Tensor | None, coefficients: Tensor,
    denoised_coefficients: Tensor, input_scale: Tensor, item: Tensor, sample: Tensor,
) -> None:  # fmt: skip
    """Advance `latents` and `denoised` by one step, and write the latent half of `sample`, all in place.

    Args:
        noise: `[B, Z, h, w]`, the guided noise; may be half precision, like `sample`.
        latents, denoised: `[B, Z, h, w]`, float32 like all that follows but `item` and `sample`.
        fresh_noise: `[B, Z, h, w]`, or None where its coefficient e is 0.
        coefficients: `[4]`, a, b, c, e of latents, noise, denoised and fresh noise.
        denoised_coefficients: `[2]`, p, q of the old latents and the noise.
        input_scale: `[1]`, the factor on the latents that enter the U-Net.
        item: `[P]` int64, the image each U-Net input belongs to.
        sample: `[P, 2Z, h, w]`; its second half, the source latents, stays as it is.
    """
    a, b, c, e = coefficients
    p, q = denoised_coefficients
    noise = noise.to(latents.dtype)
    after = a * latents + b * noise + c * denoised
    if fresh_noise is not None:
        after += e * fresh_noise
    denoised.copy_(p * latents + q * noise)
    latents.copy_(after)
    sample[:, : latents.shape[1]] = input_scale * latents[item]
