"""Previews of latents are like what the decoder makes of them."""

import numpy as np

from mrc_edit.serve.preview import fit_preview, preview


def test_a_preview_is_near_the_edit(mini, photo):
    """Far nearer than to any other edit's."""
    matrix = fit_preview(mini.backend)
    rng = np.random.RandomState(1)
    photos = [np.kron(rng.randint(0, 256, (4, 4, 3)), np.ones((32, 32, 1))).astype(np.uint8) for _ in range(3)]
    latents = mini.edit(photos, "make it sepia", seed=[1, 2, 3], output_type="latent").images
    images = mini.edit(photos, "make it sepia", seed=[1, 2, 3]).images
    distances = np.array(
        [
            [
                np.abs(np.asarray(preview(each, matrix, image.size), dtype=float) - np.asarray(image)).mean()
                for image in images
            ]
            for each in latents
        ]
    )
    assert (distances.argmin(axis=1) == [0, 1, 2]).all() and distances.diagonal().max() < 0.6 * distances[0, 1]


def test_noise_is_no_error(mini):
    matrix = fit_preview(mini.backend)
    image = preview(np.random.RandomState(0).randn(4, 6, 8).astype(np.float32) * 100, matrix, (64, 48))
    assert image.size == (64, 48) and image.mode == "RGB"
