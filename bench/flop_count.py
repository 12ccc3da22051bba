"""Operations of a step, counted by PyTorch on shapes alone: no weights are read, nothing is computed."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from mrc_edit.engine.graphs import shapes
from mrc_edit.engine.plan import Plan
from mrc_edit.export.trace import constants
from mrc_edit.model import Checkpoint, MRCUNet
from mrc_edit.model.checkpoint import built, load_scheduler, without_notes
from mrc_edit.model.graphs import Conditioner
from mrc_edit.model.rewards import BLOCK_KEYS, REWARD_KEYS
from mrc_edit.model.step import UNetStep
from mrc_edit.model.tiny_vae import make_vae
from mrc_edit.model.tokenizer import load_tokenizer
from mrc_edit.model.weights import WEIGHTS, weight_files


def empty_checkpoint(folder: Path) -> Checkpoint:
    """The modules of a checkpoint folder without their weights, on PyTorch's `meta` device.

    Raises:
        MRCError: not a checkpoint folder.
    """
    names: list[str] = []
    for path, _ in weight_files(folder / "unet", WEIGHTS["unet"]):
        with safe_open(path, "pt") as file:
            names += file.keys()
    rewards = any(name.startswith(REWARD_KEYS) for name in names)
    injection = "blocks" if any(name.startswith(BLOCK_KEYS) for name in names) else "time"
    unet = built(folder / "unet", lambda config: MRCUNet(rewards, injection, **without_notes(config)))
    vae = built(folder / "vae", make_vae)
    text_encoder = built(folder / "text_encoder", lambda config: CLIPTextModel(CLIPTextConfig(**config)))
    return Checkpoint(
        torch.nn.Module.to(unet, "meta").eval(), vae, text_encoder,
        load_tokenizer(folder / "tokenizer"), load_scheduler(folder / "scheduler"),
    )  # fmt: skip


def count_operations(checkpoint: Checkpoint, size: int, plan: Plan) -> float:
    """Floating-point operations of one exact step over the branches of `plan`, at `size`×`size` pixels."""
    latents = size // 2 ** (len(checkpoint.vae.config.block_out_channels) - 1)
    sizes = constants(checkpoint) | {
        "inputs": len(plan.image), "branches": len(plan.branch), "guided": len(plan.guidance),
        "rows": latents, "columns": latents,
    }  # fmt: skip
    inputs, _ = shapes("unet", checkpoint.unet.rewards, checkpoint.unet.feature_bias)
    with torch.device("meta"):
        feeds = {
            name: torch.zeros(shape, dtype=torch.int64) if name == "branch" else torch.zeros(shape)
            for name, dims in inputs.items()
            for shape in [[sizes[dim] if isinstance(dim, str) else dim for dim in dims]]
        }
    step = UNetStep(checkpoint.unet)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step(**feeds)
    return float(counter.get_total_flops())


def step_parameters(unet: MRCUNet) -> int:
    """How many numbers the weights are that every step reads."""
    every, once_an_edit = unet.parameters(), Conditioner(unet).own()
    return sum(weight.numel() for weight in every) - sum(weight.numel() for weight in once_an_edit)
