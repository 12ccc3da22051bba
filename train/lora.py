"""Low-rank training of the U-Net through peft: its attention; of a student its convolutions and other products too.

What a stage adds to the U-Net (reward modules, a student's guidance embedding) trains in full.
"""

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from ..core.files import write_file
from ..model.checkpoint import Checkpoint
from ..model.guidance import GUIDANCE_KEY
from ..model.lora import DEFAULTS_HEADER
from ..model.rewards import REWARD_KEYS
from ..model.unet import MRCUNet

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
STUDENT_TARGETS = (
    *TARGETS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
    "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
LORA_FILE = "pytorch_lora_weights.safetensors"  # where diffusers looks for it in a folder


def add_lora(unet: MRCUNet, rank: int, seed: int) -> None:
    """Add adapters of `rank`; they and what the stage adds require gradients.

    A student's rewards stay as they are, so that its LoRA fits every model of the family.
    """
    torch.manual_seed(seed)
    added = (GUIDANCE_KEY,) if unet.embeds_guidance else REWARD_KEYS
    targets = list(STUDENT_TARGETS if unet.embeds_guidance else TARGETS)
    reward_layers = ["proj_deal.proj_in", "proj_deal.proj_out"]
    adapters = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, exclude_modules=reward_layers)
    inject_adapter_in_model(adapters, unet)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(added))


def save_lora(checkpoint: Checkpoint, path: Path) -> None:
    """Write the adapters in the format of diffusers, without the reward modules. Their alpha is the rank, the default.

    A student's file has its guidance embedding too, and in the header its defaults.

    Raises:
        MRCError: as `write_file`.
    """
    unet, header = checkpoint.unet, {"format": "pt"}
    state = get_peft_model_state_dict(unet, save_embedding_layers=False)
    if unet.embeds_guidance:
        state[GUIDANCE_KEY] = unet.get_parameter(GUIDANCE_KEY).detach()
        header[DEFAULTS_HEADER] = json.dumps(asdict(checkpoint.defaults))
    tensors = {f"unet.{key}": value.contiguous() for key, value in state.items()}
    write_file(path, safetensors.torch.save(tensors, header))


def merge_lora(unet: MRCUNet) -> None:
    """Add the adapters to the weights, in place, and remove them."""
    for module in unet.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    remove_lora(unet)


def remove_lora(unet: MRCUNet) -> None:
    """Remove the adapters, in place; what was merged stays."""
    for name, module in list(unet.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, module.get_base_layer())
