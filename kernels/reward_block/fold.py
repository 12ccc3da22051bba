"""The reward attention folded, once an edit (docs/mathematics.md).

With two keys the softmax is a sigmoid. The query and output projections are multiplied into tensors that depend
on the reward alone: `dense(attention(x)) = base + update · σ(gate · x + gate_bias)`, one gate a head.
"""

import torch
from torch import Tensor, nn

HEADS = 8


def fold(
    tokens: Tensor, query: nn.Linear, key: nn.Linear, value: nn.Linear, dense: nn.Linear
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reward tokens `[R, 2, T]` and the attention's projections → gate `[R, 8, C]`, gate_bias `[R, 8, 1]`,
    base `[R, C, 1]`, update `[R, C, 8]`."""
    size = query.out_features // HEADS  # channels a head
    key0, key1 = key(tokens).unflatten(2, (HEADS, size)).unbind(1)  # each [R, 8, size]
    value0, value1 = value(tokens).unflatten(2, (HEADS, size)).unbind(1)
    difference = (key0 - key1) / size**0.5
    gate = torch.einsum("rhd,hdc->rhc", difference, query.weight.unflatten(0, (HEADS, size)))
    gate_bias = torch.einsum("rhd,hd->rh", difference, query.bias.unflatten(0, (HEADS, size)))
    base = dense(value1.flatten(1))
    update = torch.einsum("chd,rhd->rch", dense.weight.unflatten(1, (HEADS, size)), value0 - value1)
    return gate, gate_bias[..., None], base[..., None], update
