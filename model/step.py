"""One step of the U-Net with guidance, as the graphs compute it.

B images   T texts   R rewards   S steps   P U-Net inputs before the text differs   N branches
L text length (77)   D text width   C = block_out_channels[0]   Z latent channels   h×w latents of H×W pixels
Σt channels of all timestep biases   Σk channels of all text keys and values   Σr of all reward layers
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import MRCError
from ..kernels import ops
from .layers import cross_attentions, fused_norm_silu, norm_silu, resnet, resnets, select, transformer, upsamplers
from .rewards import RewardLayer
from .unet import MRCUNet

Folded = tuple[Tensor, ...]  # the folded attention of a reward layer: gate, gate_bias, base, update
Reward = tuple[RewardLayer, Folded, Folded]  # a reward layer with that of the P inputs and of the N branches
FOLDED_DIMS = (2, 2, 1, 1)  # along which those of several layers stand beside each other


class UNetStep(nn.Module):
    """One step of the U-Net with guidance: the same modules as `MRCUNet`, called for speed.

    Branches share what comes before the first cross-attention (P inputs, N branches), and are
    combined before `conv_out`, which is linear. Where the model has a reward layer after every block, those after
    the first cross-attention take the rewards of the branches. `fused` computes with the kernels (`kernels.ops`) what
    the exported graph writes out.
    """

    def __init__(self, unet: MRCUNet, fused: bool = False) -> None:
        super().__init__()
        if not any(hasattr(block, "attentions") for block in unet.down_blocks):
            raise MRCError("no down block has cross-attention; give one of CrossAttnDownBlock2D")
        self.unet = unet
        self.fused = fused
        self.upsamplers = upsamplers(unet.up_blocks)

    def forward(
        self, sample: Tensor, branch: Tensor, guidance: Tensor, time_bias: Tensor, text_kv: Tensor,
        gate: Tensor | None = None, gate_bias: Tensor | None = None, base: Tensor | None = None,
        update: Tensor | None = None, feature_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Predict the guided noise.

        Args:
            sample: `[P, 2Z, h, w]`, scaled latents and source latents.
            branch: `[N]` int64, the row of `sample` each branch continues.
            guidance: `[G, N]`, weight of each branch in each row of noise; where branches are spread
                over several calls, the sum of their noises is the noise of the sum.
            time_bias: `[P, Σt]`, text_kv: `[N, L, Σk]`; gate, gate_bias, base, update: the folded attention of the
                reward layers.
                All as from `Conditioner`, with P rows in place of R.
            feature_bias: `[P, C, h, w]`, added to what `conv_in` gives.

        Returns:
            Guided noise `[G, Z, h, w]`, and the deep features `[N, F, h, w]` that `UNetShallow` continues from.
        """
        rewards = self.rewards(branch, gate, gate_bias, base, update)
        hidden = self.begin(sample, feature_bias, rewards)
        biases = self.biases(time_bias, branch)
        keys_values = self.keys_values(text_kv)

        # P inputs become N branches in the first cross-attention
        skips, hidden = self.down(hidden, branch, biases, keys_values, rewards)
        hidden = self.reward(self.middle(hidden, biases, keys_values), rewards)
        hidden, deep = self.up(hidden, skips, biases, keys_values, rewards)
        return self.guide(hidden, guidance), deep.float()

    def down(
        self, hidden: Tensor, branch: Tensor, biases: Iterator[tuple[Tensor, Tensor]], keys_values: Iterator[Tensor],
        rewards: Iterator[Reward],
    ) -> tuple[list[Tensor], Tensor]:  # fmt: skip
        """The down blocks: `[P, C, h, w]` → skip connections of N branches, and the last features."""
        branched = False
        skips = [hidden]
        for block in self.unet.down_blocks:
            for i, layer in enumerate(block.resnets):
                of_inputs, of_branches = next(biases)
                hidden = resnet(layer, hidden, of_branches if branched else of_inputs, self.fused)
                if hasattr(block, "attentions"):
                    start = None if branched else branch
                    hidden = transformer(block.attentions[i], hidden, keys_values, start, self.fused)
                    if not branched:
                        skips, branched = [select(skip, branch) for skip in skips], True
                skips.append(hidden)
            for downsampler in block.downsamplers or ():
                hidden = downsampler(hidden)
                skips.append(hidden)
            hidden = self.reward(hidden, rewards, branched)
        return skips, hidden

    def middle(self, hidden: Tensor, biases: Iterator[tuple[Tensor, Tensor]], keys_values: Iterator[Tensor]) -> Tensor:
        block = self.unet.mid_block
        hidden = resnet(block.resnets[0], hidden, next(biases)[1], self.fused)
        for attention, layer in zip(block.attentions, block.resnets[1:], strict=True):
            hidden = transformer(attention, hidden, keys_values, fused=self.fused)
            hidden = resnet(layer, hidden, next(biases)[1], self.fused)
        return hidden

    def up(
        self, hidden: Tensor, skips: list[Tensor], biases: Iterator[tuple[Tensor, Tensor]],
        keys_values: Iterator[Tensor], rewards: Iterator[Reward],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The up blocks → last features, and the deep features: the input of the last ResNet."""
        upsamplers = iter(self.upsamplers)
        deep = hidden
        for block in self.unet.up_blocks:
            for i, layer in enumerate(block.resnets):
                deep = hidden
                hidden = resnet(layer, torch.cat([hidden, skips.pop()], dim=1), next(biases)[1], self.fused)
                if hasattr(block, "attentions"):
                    hidden = transformer(block.attentions[i], hidden, keys_values, fused=self.fused)
            if block.upsamplers:
                hidden = next(upsamplers)(hidden)
            hidden = self.reward(hidden, rewards)
        return hidden, deep

    def begin(self, sample: Tensor, feature_bias: Tensor | None, rewards: Iterator[Reward]) -> Tensor:
        """`conv_in`, the feature bias and the first reward layer: `[P, 2Z, h, w]` → `[P, C, h, w]`."""
        dtype = self.unet.conv_in.weight.dtype
        hidden = self.unet.conv_in(sample.to(dtype))
        if feature_bias is not None:
            hidden = hidden + feature_bias.to(dtype)
        return self.reward(hidden, rewards, branched=False)

    def rewards(self, branch: Tensor, *folded: Tensor | None) -> Iterator[Reward]:
        """The reward layers in the order of the forward pass; none of a model without rewards."""
        layers = self.unet.reward_layers()
        if not layers:
            return iter(())
        dtype = self.unet.conv_in.weight.dtype
        tensors = [tensor.to(dtype) for tensor in folded if tensor is not None]
        of_inputs = of_branches = parts(layers, tensors)
        if len(layers) > 1:
            of_branches = parts(layers, [tensor.index_select(0, branch) for tensor in tensors])
        return zip(layers, of_inputs, of_branches, strict=True)

    def biases(self, time_bias: Tensor, branch: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Timestep bias of each ResNet, for the P inputs and for the N branches."""
        channels = [resnet.out_channels for resnet in resnets(self.unet)]
        time_bias = time_bias.to(self.unet.conv_in.weight.dtype)[..., None, None]
        return zip(time_bias.split(channels, 1), time_bias.index_select(0, branch).split(channels, 1), strict=True)

    def keys_values(self, text_kv: Tensor) -> Iterator[Tensor]:
        """Key and value of each cross-attention, `[N, L, C']`."""
        widths = [attention.inner_dim for attention in cross_attentions(self.unet) for _ in "kv"]
        return iter(text_kv.to(self.unet.conv_in.weight.dtype).split(widths, dim=2))

    def guide(self, hidden: Tensor, guidance: Tensor) -> Tensor:
        """Last features `[N, C, h, w]` → guided noise `[G, Z, h, w]`, linear in `guidance`."""
        last = self.unet.conv_out
        assert last.bias is not None
        activated = fused_norm_silu if self.fused else norm_silu
        hidden = activated(self.unet.conv_norm_out, hidden).float()
        guided = (guidance @ hidden.flatten(1)).unflatten(1, hidden.shape[1:]).to(last.weight.dtype)
        noise = F.conv2d(guided, last.weight, padding=last.padding).float()
        return noise + guidance.sum(1)[:, None, None, None] * last.bias.float()[:, None, None]

    def reward(self, hidden: Tensor, rewards: Iterator[Reward], branched: bool = True) -> Tensor:
        """The next reward layer on P inputs or N branches; where there is none, `hidden` as it is."""
        layer, of_inputs, of_branches = next(rewards, (None, (), ()))
        if layer is None:
            return hidden
        folded = of_branches if branched else of_inputs
        if self.fused:
            groups = layer.layer("proj_deal.norm", nn.GroupNorm).num_groups
            return ops.reward_block(hidden, *folded, list(layer.reward_weights()), groups)
        gate, gate_bias, base, update = folded
        x = layer.reward_positions(hidden)
        positions = x.transpose(1, 2)  # [P or N, C, h·w]
        attended = base + update @ torch.sigmoid(gate @ positions + gate_bias)
        return layer.reward_residual(hidden, x, attended.transpose(1, 2))


def parts(layers: list[RewardLayer], folded: Iterable[Tensor]) -> list[Folded]:
    """gate `[P, 8, Σr]`, gate_bias `[P, 8, K]`, base `[P, Σr, 1]`, update `[P, Σr, 8]` → those of each reward layer."""
    widths = [layer.channels for layer in layers]
    sizes = (widths, [1] * len(layers), widths, widths)
    split = (tensor.split(size, dim) for tensor, size, dim in zip(folded, sizes, FOLDED_DIMS, strict=True))
    return list(zip(*split, strict=True))


class UNetShallow(UNetStep):
    """A step that reuses the deep features of an earlier one (DeepCache, arXiv 2312.00858): lossy.

    Computes `conv_in`, the first reward layer and the last ResNet, whose skip connection is the first, with what
    follows it.
    """

    def __init__(self, unet: MRCUNet, fused: bool = False) -> None:
        super().__init__(unet, fused)
        self.upsamplers = nn.ModuleList()  # all come before the last ResNet

    def forward(  # type: ignore[override]
        self, sample: Tensor, branch: Tensor, guidance: Tensor, time_bias: Tensor, text_kv: Tensor, deep: Tensor,
        gate: Tensor | None = None, gate_bias: Tensor | None = None, base: Tensor | None = None,
        update: Tensor | None = None, feature_bias: Tensor | None = None,
    ) -> tuple[Tensor]:  # fmt: skip
        """As `UNetStep`, with its features `deep` `[N, F, h, w]` of an earlier step → noise `[G, Z, h, w]`."""
        rewards = list(self.rewards(branch, gate, gate_bias, base, update))
        skip = select(self.begin(sample, feature_bias, iter(rewards)), branch)
        bias = list(self.biases(time_bias, branch))[-1][1]
        last = self.unet.up_blocks[-1]
        hidden = resnet(last.resnets[-1], torch.cat([deep.to(skip.dtype), skip], dim=1), bias, self.fused)
        if hasattr(last, "attentions"):
            keys_values = iter(list(self.keys_values(text_kv))[-2:])
            hidden = transformer(last.attentions[-1], hidden, keys_values, fused=self.fused)
        hidden = self.reward(hidden, iter(rewards[1:][-1:]))
        return (self.guide(hidden, guidance),)
