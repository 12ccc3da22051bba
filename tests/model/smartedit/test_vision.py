import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from mrc_edit.core.fidelity import relative_error
from mrc_edit.model.smartedit.vision import clip_features, pixel_values

TINY = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8, "hidden_act": "quick_gelu", "projection_dim": 48,
}  # fmt: skip


def test_features_are_those_of_the_release(seed_weights, golden):
    vision = CLIPVisionModel(CLIPVisionConfig(**TINY))
    seed_weights(vision, "" if "vision_model" in next(iter(vision.state_dict())) else "vision.vision_model.")
    pixels = pixel_values(Image.fromarray(golden["edit_source"]), 32)
    features = clip_features(vision, pixels[None])
    assert features.shape == (1, 16, 48)
    assert relative_error(features.numpy(), golden["edit_clip_features"]) <= 1e-5


def test_pixels_are_stretched_to_a_square():
    wide = Image.new("RGB", (64, 16), (255, 255, 255))
    pixels = pixel_values(wide, 32)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    assert pixels.std(dim=(1, 2)).max() < 1e-6  # white to every edge: nothing is padded
