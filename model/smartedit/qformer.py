"""The Q-Former: 77 learned queries read the states of the image tokens. Its tensors have their released names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = 0.1
LAYER_NORM_EPS = 1e-12
INITIAL_STD = 0.02
CROSS_ATTENTION_EVERY = 2  # layers, from the first


class Attention(nn.Module):
    """BERT's attention with its post-norm residual; keys and values are of `context`."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        projections = {"query": width, "key": context_width, "value": context_width}
        self.self = nn.ModuleDict({name: nn.Linear(inputs, width) for name, inputs in projections.items()})
        self.output = residual_output(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` `[B, L, D]`, context `[B, K, W]`, mask `[B, K]` with 1 for what counts → `[B, L, D]`."""
        query, key, value = (
            self.self[name](source).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name, source in (("query", x), ("key", context), ("value", context))
        )
        added = None
        if mask is not None:
            added = ((1 - mask.to(query.dtype)) * torch.finfo(query.dtype).min)[:, None, None]
        dropped = DROPOUT if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, added, dropped)
        return add_and_norm(self.output, x, mixed.transpose(1, 2).flatten(2), self.training)


class Layer(nn.Module):
    """Self-attention, in every second layer cross-attention to the image tokens, feed-forward."""

    def __init__(self, width: int, heads: int, feed_forward: int, context_width: int, crosses: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width)
        self.crossattention = Attention(width, heads, context_width) if crosses else None
        self.intermediate_query = nn.ModuleDict({"dense": nn.Linear(width, feed_forward)})
        self.output_query = residual_output(feed_forward, width)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention(x, x)
        if self.crossattention is not None:
            x = self.crossattention(x, states, mask)
        return add_and_norm(self.output_query, x, F.gelu(self.intermediate_query["dense"](x)), self.training)


def residual_output(inputs: int, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, width), "LayerNorm": nn.LayerNorm(width, eps=LAYER_NORM_EPS)})


def add_and_norm(output: nn.ModuleDict, x: Tensor, update: Tensor, training: bool) -> Tensor:
    return output["LayerNorm"](x + F.dropout(output["dense"](update), DROPOUT, training))


class QFormer(nn.Module):
    """Released sizes: 77 queries of width 768, 12 heads, feed-forward 3072, 6 layers, context of 4096 or 5120."""

    def __init__(
        self, queries: int, width: int, heads: int, feed_forward: int, layers: int, context_width: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.sd_query_tokens = nn.Parameter(torch.empty(1, queries, width))
        self.sd_qformer = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict({"LayerNorm": nn.LayerNorm(width, eps=LAYER_NORM_EPS)}),
                "encoder": nn.ModuleDict(
                    {
                        "layer": nn.ModuleList(
                            Layer(width, heads, feed_forward, context_width, i % CROSS_ATTENTION_EVERY == 0)
                            for i in range(layers)
                        )
                    }
                ),
            }
        )
        self.initialize()

    def initialize(self) -> None:
        """As at the start of the released training: N(0, 0.02), biases zero."""
        nn.init.normal_(self.sd_query_tokens, std=INITIAL_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """States of the image tokens `[B, K, W]` → Q `[B, L, D]`.

        Args:
            mask: `[B, K]`, 1 or True for the states that count; None for all. In training mode dropout is on.
        """
        x = self.get_submodule("sd_qformer.embeddings.LayerNorm")(self.sd_query_tokens)
        x = F.dropout(x, DROPOUT, self.training).expand(len(states), -1, -1)
        layers = self.get_submodule("sd_qformer.encoder.layer")
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, states, mask)
        return x
