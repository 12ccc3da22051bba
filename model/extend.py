"""From a U-Net of an earlier kind to the next: text-to-image → InstructPix2Pix → MRC → rewards after every block.

Each starts as the same function of what the earlier one saw. The new U-Net is in float32 and in
training mode, shares no tensor with the old one, and draws what is fresh from torch's global generator.
"""

from typing import Any

import torch

from ..core.errors import MRCError
from ..core.schema import JsonObject
from .checkpoint import without_notes
from .unet import MRCUNet


def widen_input(unet: MRCUNet) -> MRCUNet:
    """An InstructPix2Pix U-Net: `conv_in` takes the source latents too, with weights of zero (its §3.2).

    4 input channels become 8, as for every Stable Diffusion; generally n become 2·n.

    Raises:
        MRCError: the U-Net has more or fewer input than output channels, as one has that is widened already.
    """
    inputs, outputs = unet.config.in_channels, unet.config.out_channels
    if inputs != outputs:
        raise MRCError(
            f"the U-Net has {inputs} input and {outputs} output channels; only a text-to-image U-Net, which has as "
            "many of each, is widened"
        )
    weight = unet.conv_in.weight.detach()
    wide = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    return rebuilt(unet, {"conv_in.weight": wide}, in_channels=2 * inputs)


def add_rewards(unet: MRCUNet, reward_injection: str = "time") -> MRCUNet:
    """A plain InstructPix2Pix U-Net with reward modules that change nothing yet.

    The last layers that write into the trunk are zero (`proj_deal.proj_out`, `add_embedding.linear_2`,
    `text_linear2`; with "blocks" every `proj_out` and the type embedding), the rest PyTorch's defaults.

    Raises:
        MRCError: it has rewards already, its input channels are not twice its output channels, or
            `reward_injection` is unknown.
    """
    if unet.rewards:
        raise MRCError("the U-Net has reward modules already; train it as it is, or use add_reward_blocks")
    inputs, outputs = unet.config.in_channels, unet.config.out_channels
    if inputs != 2 * outputs:
        raise MRCError(
            f"the U-Net has {inputs} input and {outputs} output channels; rewards go into an InstructPix2Pix U-Net, "
            f"which has {2 * outputs} input channels (widen_input makes one)"
        )
    rewarded = rebuilt(unet, rewards=True, reward_injection=reward_injection)
    for layer in ("proj_deal.proj_out", "add_embedding.linear_2", "text_linear2"):
        torch.nn.init.zeros_(rewarded.get_parameter(f"{layer}.weight"))
        torch.nn.init.zeros_(rewarded.get_parameter(f"{layer}.bias"))
    return rewarded


def add_reward_blocks(unet: MRCUNet) -> MRCUNet:
    """An MRC U-Net of `reward_injection="time"` with a reward layer after every block, which changes nothing yet.

    Raises:
        MRCError: it has no rewards, or these layers already.
    """
    if not unet.rewards:
        raise MRCError('the U-Net has no reward modules; use add_rewards(unet, "blocks")')
    if unet.reward_injection == "blocks":
        raise MRCError("the U-Net has reward layers after every block already; train it as it is")
    return rebuilt(unet, reward_injection="blocks")


def rebuilt(unet: MRCUNet, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> MRCUNet:
    """A new U-Net with `changes` to the keywords of `unet`: its weights, over them `tensors`, the rest fresh."""
    names = ("rewards", "reward_injection", "feature_bias")
    kind = {name: getattr(unet, name) for name in names}
    new = MRCUNet(**keywords(unet) | kind | changes)
    new.load_state_dict(new.state_dict() | unet.state_dict() | (tensors or {}))
    return new


def keywords(unet: MRCUNet) -> JsonObject:
    """The keywords of diffusers that built the U-Net."""
    return without_notes(unet.config)
