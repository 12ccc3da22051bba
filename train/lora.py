"""Low-rank training of the U-Net's attention through peft; the reward modules train in full."""

from pathlib import Path

import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from ..core.files import write_file
from ..model.rewards import REWARD_KEYS

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
LORA_FILE = "pytorch_lora_weights.safetensors"  # where diffusers looks for it in a folder


def add_lora(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Add adapters of `rank` to every attention matrix; they and the reward modules require gradients."""
    torch.manual_seed(seed)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)), unet)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(REWARD_KEYS))


def save_lora(unet: UNet2DConditionModel, path: Path) -> None:
    """Write the adapters in the format of diffusers, without the reward modules. Their alpha is the rank, the default.

    Raises:
        MRCError: as `write_file`.
    """
    state = get_peft_model_state_dict(unet, save_embedding_layers=False)
    tensors = {f"unet.{key}": value.contiguous() for key, value in state.items()}
    write_file(path, safetensors.torch.save(tensors, {"format": "pt"}))


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Add the adapters to the attention matrices, in place, and remove them."""
    for name, module in list(unet.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, module.get_base_layer())
