"""How far arrays are from what they should be."""

import math

import numpy as np


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """‖actual − expected‖ / ‖expected‖ of two arrays of one shape."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def psnr(actual: np.ndarray, expected: np.ndarray, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of one shape; infinity where they are equal.

    Args:
        peak: width of the range of values: 1 for images in 0…1, 255 for uint8.
    """
    error = float(np.mean((actual.astype(np.float64) - expected) ** 2))
    return 10 * math.log10(peak**2 / error) if error else math.inf
