"""Low-rank training of the U-Net's attention through peft; the reward modules train in full."""

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from ..model.rewards import REWARD_KEYS

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Add adapters of `rank` to every attention matrix; they and the reward modules require gradients."""
    torch.manual_seed(seed)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)), unet)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(REWARD_KEYS))


def merge_lora(unet: UNet2DConditionModel, rank: int | None) -> None:
    """Add the adapters to the attention matrices, in place, and remove them; nothing without `rank`."""
    if not rank:
        return
    for name, module in list(unet.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, module.get_base_layer())
