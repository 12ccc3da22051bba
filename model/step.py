"""One step of the U-Net with guidance, as the graphs compute it.

B images   T texts   R rewards   S steps   P U-Net inputs before the text differs   N branches
L text length (77)   D text width   C = block_out_channels[0]   h×w latents = H/8 × W/8 pixels
Σt channels of all timestep biases   Σk channels of all text keys and values
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import MRCError
from ..kernels import ops
from .layers import cross_attentions, fused_norm_silu, norm_silu, resnet, resnets, select, transformer, upsamplers
from .unet import MRCUNet


def check_injection(unet: MRCUNet) -> None:
    """Refuse a U-Net that the conditioner and step graphs do not compute."""
    if unet.reward_injection != "time":
        raise MRCError(
            f"the U-Net has reward_injection={unet.reward_injection!r}, which is for training and eager editing; "
            "the graphs and the export take 'time'"
        )


class UNetStep(nn.Module):
    """One step of the U-Net with guidance: the same modules as `MRCUNet`, called for speed.

    Branches share what comes before the first cross-attention (P inputs, N branches), and are
    combined before `conv_out`, which is linear. `fused` computes with the kernels (`kernels.ops`) what
    the exported graph writes out.
    """

    def __init__(self, unet: MRCUNet, fused: bool = False) -> None:
        super().__init__()
        check_injection(unet)
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
            sample: `[P, 8, h, w]`, scaled latents and source latents.
            branch: `[N]` int64, the row of `sample` each branch continues.
            guidance: `[G, N]`, weight of each branch in each row of noise; where branches are spread
                over several calls, the sum of their noises is the noise of the sum.
            time_bias: `[P, Σt]`, text_kv: `[N, L, Σk]`; gate, gate_bias, base, update: the folded reward attention.
                All as from `Conditioner`, with P rows in place of R.
            feature_bias: `[P, C, h, w]`, added to what `conv_in` gives.

        Returns:
            Guided noise `[G, 4, h, w]`, and the deep features `[N, F, h, w]` that `UNetShallow` continues from.
        """
        hidden = self.begin(sample, feature_bias, (gate, gate_bias, base, update))
        biases = self.biases(time_bias, branch)
        keys_values = self.keys_values(text_kv)

        # P inputs become N branches in the first cross-attention
        skips, hidden = self.down(hidden, branch, biases, keys_values)
        hidden = self.middle(hidden, biases, keys_values)
        hidden, deep = self.up(hidden, skips, biases, keys_values)
        return self.guide(hidden, guidance), deep.float()

    def down(
        self, hidden: Tensor, branch: Tensor, biases: Iterator[tuple[Tensor, Tensor]], keys_values: Iterator[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
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
        keys_values: Iterator[Tensor],
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
        return hidden, deep

    def begin(self, sample: Tensor, feature_bias: Tensor | None, folded: tuple[Tensor | None, ...]) -> Tensor:
        """`conv_in`, the feature bias and the reward block: `[P, 8, h, w]` → `[P, C, h, w]`."""
        dtype = self.unet.conv_in.weight.dtype
        hidden = self.unet.conv_in(sample.to(dtype))
        if feature_bias is not None:
            hidden = hidden + feature_bias.to(dtype)
        if not self.unet.rewards:
            return hidden
        return self.reward_block(hidden, *(tensor.to(dtype) for tensor in folded if tensor is not None))

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
        """Last features `[N, C, h, w]` → guided noise `[G, 4, h, w]`, linear in `guidance`."""
        last = self.unet.conv_out
        assert last.bias is not None
        activated = fused_norm_silu if self.fused else norm_silu
        hidden = activated(self.unet.conv_norm_out, hidden).float()
        guided = (guidance @ hidden.flatten(1)).unflatten(1, hidden.shape[1:]).to(last.weight.dtype)
        noise = F.conv2d(guided, last.weight, padding=last.padding).float()
        return noise + guidance.sum(1)[:, None, None, None] * last.bias.float()[:, None, None]

    def reward_block(self, hidden: Tensor, gate: Tensor, gate_bias: Tensor, base: Tensor, update: Tensor) -> Tensor:
        unet = self.unet
        if self.fused:
            groups = unet.layer("proj_deal.norm", nn.GroupNorm).num_groups
            return ops.reward_block(hidden, gate, gate_bias, base, update, list(unet.reward_weights()), groups)
        x = unet.reward_positions(hidden)
        positions = x.transpose(1, 2)  # [P, C, h·w]
        attended = base + update @ torch.sigmoid(gate @ positions + gate_bias)
        return unet.reward_residual(hidden, x, attended.transpose(1, 2))


class UNetShallow(UNetStep):
    """A step that reuses the deep features of an earlier one (DeepCache, arXiv 2312.00858): lossy.

    Computes `conv_in`, the reward block and the last ResNet, whose skip connection is the first.
    """

    def __init__(self, unet: MRCUNet, fused: bool = False) -> None:
        super().__init__(unet, fused)
        self.upsamplers = nn.ModuleList()  # all come before the last ResNet

    def forward(  # type: ignore[override]
        self, sample: Tensor, branch: Tensor, guidance: Tensor, time_bias: Tensor, text_kv: Tensor, deep: Tensor,
        gate: Tensor | None = None, gate_bias: Tensor | None = None, base: Tensor | None = None,
        update: Tensor | None = None, feature_bias: Tensor | None = None,
    ) -> tuple[Tensor]:  # fmt: skip
        """As `UNetStep`, with its features `deep` `[N, F, h, w]` of an earlier step → noise `[G, 4, h, w]`."""
        skip = select(self.begin(sample, feature_bias, (gate, gate_bias, base, update)), branch)
        bias = list(self.biases(time_bias, branch))[-1][1]
        last = self.unet.up_blocks[-1]
        hidden = resnet(last.resnets[-1], torch.cat([deep.to(skip.dtype), skip], dim=1), bias, self.fused)
        if hasattr(last, "attentions"):
            keys_values = iter(list(self.keys_values(text_kv))[-2:])
            hidden = transformer(last.attentions[-1], hidden, keys_values, fused=self.fused)
        return (self.guide(hidden, guidance),)
