"""Rough pictures of latents in the middle of an edit, by a matrix in place of the decoder."""

import numpy as np
from PIL import Image

from ..engine.backends import Backend
from ..engine.noise import generator

SIDE = 16  # latents along a side of what the matrix is fitted to


def fit_preview(backend: Backend) -> np.ndarray:
    """The matrix `[C + 1, 3]` from latents and 1 to colours in -1…1, fitted to what the model's decoder makes of noise.

    C is the number of latent channels. Decodes once.
    """
    geometry = backend.geometry
    noise = generator(0).randn(1, geometry.latent_channels, SIDE // 4, SIDE // 4)
    latents = noise.repeat(4, axis=2).repeat(4, axis=3).astype(np.float32)
    decoded = backend.vae_decoder(latents=latents)[0]
    side = geometry.vae_scale
    colours = decoded.reshape(3, SIDE, side, SIDE, side).mean(axis=(2, 4)).reshape(3, -1).T
    rows = with_one(latents[0])
    return np.linalg.lstsq(rows, colours, rcond=None)[0]


def with_one(latents: np.ndarray) -> np.ndarray:
    """`[C, h, w]` → `[h·w, C + 1]`."""
    return np.concatenate([latents.reshape(len(latents), -1), np.ones((1, latents[0].size))]).T


def preview(latents: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Latents `[C, h, w]` of any noise level as an RGB image of `size`."""
    height, width = latents.shape[1:]
    calm = latents / max(1.0, float(latents.std()))  # samplers scale noisy latents differently
    colours = (with_one(calm) @ matrix).reshape(height, width, 3)
    pixels = ((colours / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
