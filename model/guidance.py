"""What distillation adds to a U-Net: the guidance scales as a condition of the timestep embedding, in one tensor."""

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

EMBEDDED = "guidance"  # `time_embedding_type` in the config of a U-Net that embeds them; diffusers refuses the word
SCALES = 2  # guidance_scale, image_guidance_scale
CHANNELS = 256  # sinusoids a scale
GUIDANCE_KEY = "guidance_embedding.weight"


class GuidanceEmbedding(nn.Linear):
    """Guidance scales `[R, 2]` → `[R, channels]`, added to the sinusoids of the timestep; starts as zero."""

    def __init__(self, channels: int) -> None:
        super().__init__(SCALES * CHANNELS, channels, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, scales: torch.Tensor) -> torch.Tensor:
        sinusoids = get_timestep_embedding(scales.flatten(), CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        return super().forward(sinusoids.reshape(len(scales), SCALES * CHANNELS).to(self.weight.dtype))
