"""What MRC adds to a Stable Diffusion U-Net: 34 tensors under the released keys.

Shapes: B batch, C channels at a reward layer, T = block_out_channels[0], the token width (320 as
released), E = 4·T, D text width, HW positions. The sub-module names below are the released state-dict
keys, hence `ca` and `proj_deal`; the keys of the layers after every block (paper, figure 5) are ours.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import nn

from ..core.errors import MRCError
from ..kernels.reward_block.fold import HEADS, fold
from ..kernels.reward_block.reference import RewardWeights

SCORE_CHANNELS = 256  # sinusoid channels a score, as Timesteps(256) in the release
DROPOUT = 0.1  # of the released layer's BERT configuration
SCORES = 3  # following, preserving, quality
BLOCK_KEYS = ("reward_blocks.", "reward_type_embedding")  # of reward_injection="blocks" alone
REWARD_KEYS = ("add_embedding.", "add_embedding2.", "text_linear.", "text_linear2.", "ca.", "proj_deal.", *BLOCK_KEYS)


def score_embedding(scores: torch.Tensor) -> torch.Tensor:
    """Raw 0–5 scores `[B, 3]` → sinusoids `[B, 768]`, one score after the other, in float32."""
    sinusoids = get_timestep_embedding(scores.flatten(), SCORE_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
    return sinusoids.reshape(len(scores), SCORES * SCORE_CHANNELS)


def reward_cross_attention(channels: int, token_width: int) -> nn.ModuleDict:
    """Parameters of one post-norm BERT layer whose keys and values are the reward tokens (`ca`)."""
    if channels % HEADS:
        raise MRCError(
            f"the {HEADS} heads of a reward layer do not divide {channels} channels; "
            f"make block_out_channels multiples of {HEADS}"
        )

    def output() -> nn.ModuleDict:
        return nn.ModuleDict({"dense": nn.Linear(channels, channels), "LayerNorm": nn.LayerNorm(channels, eps=1e-12)})

    widths = {"query": channels, "key": token_width, "value": token_width}
    projections = nn.ModuleDict({name: nn.Linear(width, channels) for name, width in widths.items()})
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


Layer = TypeVar("Layer", bound=nn.Module)


class RewardLayer(nn.Module):
    """Adds the reward to a feature map: norm, projection, one BERT layer, projection, residual.

    Released, the U-Net is itself such a layer (`ca`, `proj_deal`), for what `conv_in` gives.
    """

    def build_layer(self, channels: int, token_width: int, groups: int) -> None:
        self.ca = reward_cross_attention(channels, token_width)
        self.proj_deal = reward_projections(channels, groups)

    @property
    def dropout(self) -> float:
        """Probability at which training drops attention probabilities and both dense outputs."""
        return DROPOUT if self.training else 0.0

    @property
    def channels(self) -> int:
        return self.layer("proj_deal.norm", nn.GroupNorm).num_channels

    def layer(self, path: str, kind: type[Layer]) -> Layer:
        """The sub-module at a path of released keys, such as `ca.output.dense`."""
        module = self.get_submodule(path)
        assert isinstance(module, kind)
        return module

    def reward_layer(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Feature map `[B, C, h, w]` with the reward tokens `[B, 2, T]` added, of the same shape."""
        x = self.reward_positions(hidden)
        return self.reward_residual(hidden, x, self.reward_attention(x, tokens))

    def reward_positions(self, hidden: torch.Tensor) -> torch.Tensor:
        """Feature map `[B, C, h, w]` → normed, projected positions `[B, HW, C]`."""
        return (
            self.layer("proj_deal.proj_in", nn.Conv2d)(self.layer("proj_deal.norm", nn.GroupNorm)(hidden))
            .flatten(2)
            .transpose(1, 2)
        )

    def reward_attention(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`dense(attention(x))`: positions `[B, HW, C]` attend to reward tokens `[B, 2, T]`."""
        query, key, value = (
            self.layer(f"ca.attention.self.{name}", nn.Linear)(source).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for name, source in (("query", x), ("key", tokens), ("value", tokens))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout)
        return self.layer("ca.attention.output.dense", nn.Linear)(mixed.transpose(1, 2).flatten(2))

    def folded_attention(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`reward_attention` to the reward tokens `[R, 2, T]`, folded (`kernels.reward_block.fold`)."""
        names = ("self.query", "self.key", "self.value", "output.dense")
        return fold(tokens, *(self.layer(f"ca.attention.{name}", nn.Linear) for name in names))

    def reward_residual(self, hidden: torch.Tensor, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What follows the attention: two post-norm residuals and the way back to `[B, C, h, w]`."""
        y = self.layer("ca.attention.output.LayerNorm", nn.LayerNorm)(x + F.dropout(attended, self.dropout))
        inner = F.gelu(self.layer("ca.hidden_intermediate.dense", nn.Linear)(y))
        outer = self.layer("ca.output.dense", nn.Linear)(inner)
        z = self.layer("ca.output.LayerNorm", nn.LayerNorm)(y + F.dropout(outer, self.dropout))
        return hidden + self.layer("proj_deal.proj_out", nn.Conv2d)(z.transpose(1, 2).unflatten(2, hidden.shape[2:]))

    def reward_weights(self) -> RewardWeights:
        """What the layer's kernel takes (`kernels.ops.reward_block`); the attention is folded apart."""
        paths = (
            "proj_deal.norm", "proj_deal.proj_in", "ca.attention.output.LayerNorm", "ca.hidden_intermediate.dense",
            "ca.output.dense", "ca.output.LayerNorm", "proj_deal.proj_out",
        )  # fmt: skip
        tensors = [self.get_parameter(f"{path}.{name}") for path in paths for name in ("weight", "bias")]
        return RewardWeights(*(tensor.flatten(1) if tensor.ndim == 4 else tensor for tensor in tensors))


class RewardBlock(RewardLayer):
    """The reward layer after one block of the U-Net; starts as the identity."""

    def __init__(self, channels: int, token_width: int, groups: int) -> None:
        super().__init__()
        self.build_layer(channels, token_width, groups)
        nn.init.zeros_(self.get_parameter("proj_deal.proj_out.weight"))
        nn.init.zeros_(self.get_parameter("proj_deal.proj_out.bias"))

    def forward(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.reward_layer(hidden, tokens)


class RewardConditioning(RewardLayer):
    """Mixin of the U-Net that owns the reward modules: embeddings, the released layer, one after every block."""

    def build_rewards(self, channels: int, text_width: int, groups: int, outputs: Sequence[int]) -> None:
        """`outputs`: channels that each block gives, in the order of the forward pass; empty as released."""
        embedding = 4 * channels
        self.add_embedding = TimestepEmbedding(SCORES * SCORE_CHANNELS, embedding)
        self.add_embedding2 = TimestepEmbedding(SCORES * SCORE_CHANNELS, channels)
        self.text_linear = nn.Linear(text_width, channels)
        self.text_linear2 = nn.Linear(text_width, embedding)
        self.build_layer(channels, channels, groups)
        self.reward_blocks = nn.ModuleList(RewardBlock(width, channels, groups) for width in outputs)
        if outputs:
            # row 0 for the scores, row 1 for the text; zero keeps the released layer's tokens as they were
            self.reward_type_embedding = nn.Parameter(torch.zeros(2, channels))

    def reward_layers(self) -> list[RewardLayer]:
        """All reward layers in the order of the forward pass; none without rewards."""
        return [self, *self.reward_blocks] if hasattr(self, "reward_blocks") else []

    def reward_embedding(self, scores: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores `[B, 3]`, pooled text `[B, D]` → timestep bias `[B, E]`, two tokens `[B, 2, T]`."""
        sinusoids = score_embedding(scores).to(text.dtype)
        bias = self.add_embedding(sinusoids) + self.text_linear2(text)
        tokens = torch.stack([self.add_embedding2(sinusoids), self.text_linear(text)], dim=1)
        return bias, tokens + self.reward_type_embedding if self.reward_blocks else tokens
