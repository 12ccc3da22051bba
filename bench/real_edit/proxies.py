"""Judge-free metrics of an edit. Proxies: none of them knows the instruction.

Where an edit was made is estimated from the difference of the two pictures, so what a model damages strongly
counts as edited; read the metrics outside the edit together with the edited area.
"""

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2gray, rgb2lab
from skimage.filters import threshold_otsu
from skimage.measure import blur_effect
from skimage.metrics import structural_similarity

from ...core.fidelity import psnr

WHOLE = ("global", "style")  # edit types that ask for a change of the whole picture: nothing lies outside
LEAST_CHANGE = 5.0  # CIELAB units; a smaller difference is the autoencoder's, not an edit
MOST_DB = 60.0  # what PSNR is cut at, so that equal pictures have a mean
SCALES = 4
SSIM_WINDOW = 11  # pixels; outside lies what no window shares with the edit
# Contrast constant of gradient magnitude similarity: 170 for grey values up to 255, here for lightness up to 100
GRADIENT_C = 170 * (100 / 255) ** 2
METRICS = {  # name → heading
    "area": "edited area %",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "structure": "structure distance",
    "colour": "colour distance",
    "blur": "blur",
    "noise": "noise",
    "clipped": "clipped %",
}


def proxy_metrics(source: Image.Image, edited: Image.Image, type: str) -> dict[str, float | None]:
    """Metrics of one edit, both pictures RGB of one size.

    `area` is the edited share in per cent. Outside of it: `psnr` in dB (at most 60), `ssim`, `structure` (mean of
    1 − gradient magnitude similarity over four scales, 0…1) and `colour` (mean CIELAB difference after smoothing);
    None for edits of the whole picture and where nothing lies outside. `blur` (Crété 2007, 0…1), `noise`
    (Immerkær 1996, standard deviation in levels of 255) and `clipped` (per cent of pixels with a channel at 0 or
    255) are the edit's less the source's.
    """
    before, after = (np.asarray(image.convert("RGB")) for image in (source, edited))
    labs = rgb2lab(before), rgb2lab(after)
    difference = smoothed_difference(*labs)
    edit = edited_region(difference)
    outside = ~ndimage.binary_dilation(edit, np.ones((SSIM_WINDOW, SSIM_WINDOW)))
    metrics: dict[str, float | None] = {"area": 100 * float(edit.mean())}
    if type in WHOLE or not outside.any():
        metrics |= dict.fromkeys(("psnr", "ssim", "structure", "colour"))
    else:
        similarity = structural_similarity(
            before, after, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )[1]
        metrics |= {
            "psnr": min(MOST_DB, psnr(before[outside], after[outside], peak=255)),
            "ssim": float(similarity[outside].mean()),
            "structure": structure_distance(labs[0][..., 0], labs[1][..., 0], outside),
            "colour": float(difference[outside].mean()),
        }
    quality = {"blur": blur, "noise": noise, "clipped": clipped}
    metrics |= {name: metric(after) - metric(before) for name, metric in quality.items()}
    return {name: None if value is None else round(value, 4) for name, value in metrics.items()}


def smoothed_difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """CIE76 difference of two CIELAB pictures `[H, W, 3]`, under a Gaussian of a hundredth of the longer side."""
    return ndimage.gaussian_filter(np.linalg.norm(before - after, axis=2), max(before.shape) / 100)


def edited_region(difference: np.ndarray) -> np.ndarray:
    """Mask `[H, W]` of the more changed part, by Otsu's threshold, at least `LEAST_CHANGE`."""
    split = threshold_otsu(difference) if np.ptp(difference) else 0.0
    return difference > max(split, LEAST_CHANGE)


def structure_distance(before: np.ndarray, after: np.ndarray, outside: np.ndarray) -> float:
    """1 − gradient magnitude similarity (Xue et al. 2014) of two lightnesses `[H, W]`, mean outside the edit, over
    scales halved from one to the next where something still lies wholly outside."""
    distances = []
    weight = outside.astype(float)
    for _ in range(SCALES):
        untouched = weight == 1
        if min(before.shape) < 3 or not untouched.any():
            break
        first, second = (np.hypot(*(ndimage.prewitt(image, axis) / 3 for axis in (0, 1))) for image in (before, after))
        similarity = (2 * first * second + GRADIENT_C) / (first**2 + second**2 + GRADIENT_C)
        distances.append(1 - float(similarity[untouched].mean()))
        before, after, weight = halved(before), halved(after), halved(weight)
    return float(np.mean(distances))


def halved(image: np.ndarray) -> np.ndarray:
    """Means of 2×2; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in image.shape)
    return image[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def blur(image: np.ndarray) -> float:
    return float(blur_effect(image, channel_axis=2))


def noise(image: np.ndarray) -> float:
    grey = rgb2gray(image) * 255
    laplacian = ndimage.convolve(grey, np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]))[1:-1, 1:-1]
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(laplacian).mean())


def clipped(image: np.ndarray) -> float:
    return 100 * float(((image == 0) | (image == 255)).any(axis=2).mean())
