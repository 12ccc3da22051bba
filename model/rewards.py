"""What MRC adds to a Stable Diffusion U-Net: 34 tensors under the released keys.

Shapes: B batch, C = block_out_channels[0] (320 as released), E = 4·C, D text width, HW positions.
The sub-module names below are the released state-dict keys, hence `ca` and `proj_deal`.
"""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import nn

SCORE_CHANNELS = 256  # sinusoid channels a score, as Timesteps(256) in the release
SCORES = 3  # following, preserving, quality
HEADS = 8
REWARD_KEYS = ("add_embedding.", "add_embedding2.", "text_linear.", "text_linear2.", "ca.", "proj_deal.")


def score_embedding(scores: torch.Tensor) -> torch.Tensor:
    """Raw 0–5 scores `[B, 3]` → sinusoids `[B, 768]`, one score after the other, in float32."""
    sinusoids = get_timestep_embedding(scores.flatten(), SCORE_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
    return sinusoids.reshape(len(scores), SCORES * SCORE_CHANNELS)


def reward_cross_attention(channels: int) -> nn.ModuleDict:
    """Parameters of one post-norm BERT layer whose keys and values are the reward tokens (`ca`)."""

    def output() -> nn.ModuleDict:
        return nn.ModuleDict({"dense": nn.Linear(channels, channels), "LayerNorm": nn.LayerNorm(channels, eps=1e-12)})

    projections = nn.ModuleDict({name: nn.Linear(channels, channels) for name in ("query", "key", "value")})
    return nn.ModuleDict(
        {
            "attention": nn.ModuleDict({"self": projections, "output": output()}),
            "hidden_intermediate": nn.ModuleDict({"dense": nn.Linear(channels, channels)}),
            "output": output(),
        }
    )


def reward_projections(channels: int, groups: int) -> nn.ModuleDict:
    """Norm and 1×1 convolutions around the reward layer (`proj_deal`)."""
    return nn.ModuleDict(
        {
            "norm": nn.GroupNorm(groups, channels, eps=1e-6),
            "proj_in": nn.Conv2d(channels, channels, 1),
            "proj_out": nn.Conv2d(channels, channels, 1),
        }
    )


class RewardConditioning(nn.Module):
    """Mixin of the U-Net that owns the reward modules and their three computations."""

    def build_rewards(self, channels: int, text_width: int, groups: int) -> None:
        embedding = 4 * channels
        self.add_embedding = TimestepEmbedding(SCORES * SCORE_CHANNELS, embedding)
        self.add_embedding2 = TimestepEmbedding(SCORES * SCORE_CHANNELS, channels)
        self.text_linear = nn.Linear(text_width, channels)
        self.text_linear2 = nn.Linear(text_width, embedding)
        self.ca = reward_cross_attention(channels)
        self.proj_deal = reward_projections(channels, groups)

    def reward_embedding(self, scores: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores `[B, 3]`, pooled text `[B, D]` → timestep bias `[B, E]`, two tokens `[B, 2, C]`."""
        sinusoids = score_embedding(scores).to(text.dtype)
        bias = self.add_embedding(sinusoids) + self.text_linear2(text)
        tokens = torch.stack([self.add_embedding2(sinusoids), self.text_linear(text)], dim=1)
        return bias, tokens

    def reward_attention(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`dense(attention(x))`: positions `[B, HW, C]` attend to reward tokens `[B, 2, C]`."""
        attention = self.ca["attention"]
        query, key, value = (
            attention["self"][name](source).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for name, source in (("query", x), ("key", tokens), ("value", tokens))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return attention["output"]["dense"](mixed.transpose(1, 2).flatten(2))

    def reward_positions(self, hidden: torch.Tensor) -> torch.Tensor:
        """Feature map `[B, C, h, w]` → normed, projected positions `[B, HW, C]`."""
        return self.proj_deal["proj_in"](self.proj_deal["norm"](hidden)).flatten(2).transpose(1, 2)

    def reward_residual(self, hidden: torch.Tensor, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What follows the attention: two post-norm residuals and the way back to `[B, C, h, w]`."""
        drop = 0.1 if self.training else 0.0
        y = self.ca["attention"]["output"]["LayerNorm"](x + F.dropout(attended, drop))
        inner = F.gelu(self.ca["hidden_intermediate"]["dense"](y))
        z = self.ca["output"]["LayerNorm"](y + F.dropout(self.ca["output"]["dense"](inner), drop))
        return hidden + self.proj_deal["proj_out"](z.transpose(1, 2).unflatten(2, hidden.shape[2:]))
