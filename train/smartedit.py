"""SmartEdit in training: the editor whose Q-Former and BIM turn cached states into conditions.

The language model and CLIP are frozen, and not needed after `train.image_states` has cached what they give.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel

from ..model.smartedit.bim import BIM, text_states
from ..model.smartedit.folder import load_smartedit
from ..model.smartedit.language import image_states
from ..model.smartedit.qformer import QFormer
from ..model.smartedit.vision import clip_features, pixel_values
from ..model.unet import MRCUNet
from .image_states import Encode
from .objective import Editor


class SmartEditor(Editor):
    """As `Editor`, with SmartEdit's modules."""

    def __init__(self, unet: MRCUNet, text_encoder: CLIPTextModel, qformer: QFormer, bim: BIM) -> None:
        super().__init__(unet, text_encoder)
        self.qformer, self.bim = qformer, bim

    def forward(  # type: ignore[override]
        self, sample: Tensor, timesteps: Tensor, text: Tensor, scores: Tensor | None, reward_text: Tensor | None,
        features: Tensor, empty_text: Tensor, no_text: Tensor, scales: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The U-Net's prediction `[B, Z, h, w]`.

        Samples without text keep the feature map, as in the release (DS_SmartEdit_model.py): it still tells them
        the instruction.

        Args:
            text: states of the image tokens `[B, K, W]`.
            features: CLIP's `[B, N, M]`.
            empty_text: one empty instruction, as for `Editor`.
            no_text: `[B]` bool, the samples that get it in place of their own.
            scales: `[B, 2]`, of a student.
        """
        states, feature_bias = self.read(text, features, *sample.shape[2:])
        states = torch.where(no_text[:, None, None], self.states(empty_text), states)
        return self.unet(sample, timesteps, states, scores, self.pooled(reward_text), feature_bias, scales)

    def read(self, states: Tensor, features: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """States `[B, K, W]`, features `[B, N, M]` → text states `[B, L, D]`, feature bias `[B, C, height, width]`."""
        queries = self.qformer(states)
        update, feature_bias = self.bim(features, queries, height, width)
        return text_states(queries, update), feature_bias

    def train(self, mode: bool = True) -> "SmartEditor":
        """A frozen Q-Former stays without dropout."""
        super().train(mode)
        self.qformer.train(mode and self.qformer.sd_query_tokens.requires_grad)
        return self


def reader(folder: Path, device: torch.device) -> Encode:
    """What encodes pictures and instructions with the language model and CLIP of a SmartEdit folder."""
    model = load_smartedit(folder, torch.bfloat16 if device.type == "cuda" else torch.float32)
    for part in (model.vision, model.projector, model.llm):
        part.to(device)  # type: ignore[arg-type]  # transformers' annotation

    def encode(picture: Image.Image, instruction: str) -> tuple[Tensor, Tensor]:
        pixels = pixel_values(picture, model.vision.config.image_size).to(device)
        features = clip_features(model.vision, pixels[None])[0]
        return image_states(model, features, instruction), features

    return encode
