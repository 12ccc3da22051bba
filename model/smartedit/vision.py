"""What SmartEdit sees of an image: CLIP's patch features before its last layer."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel

LAYER = -2  # of the hidden states
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def pixel_values(image: Image.Image, side: int) -> Tensor:
    """An RGB image, stretched to a square of `side` → float32 `[3, side, side]`, normalized for CLIP."""
    square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    unit = np.asarray(square, dtype=np.float32) / 255
    normalized = (unit - MEAN) / STD
    return torch.from_numpy(normalized.transpose(2, 0, 1).copy())


def clip_features(vision: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Pixels `[B, 3, side, side]` → F `[B, N, M]`: patches row by row, without the class token and the last norm."""
    return vision(pixels, output_hidden_states=True).hidden_states[LAYER][:, 1:]
