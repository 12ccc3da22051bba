"""The model of the check, and whole edits with it."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import CLIPTextConfig, CLIPTextModel

from mrc_edit.bench.operators import SD15
from mrc_edit.bench.workload import photograph
from mrc_edit.core.fidelity import psnr, relative_error
from mrc_edit.engine import Engine
from mrc_edit.engine.backends.eager import EagerBackend
from mrc_edit.model import load_checkpoint
from mrc_edit.model.checkpoint import Checkpoint
from mrc_edit.model.seeded import byte_tokenizer, seeded, seeded_checkpoint
from mrc_edit.model.unet import MRCUNet

from .report import Report
from .settings import CHECKPOINT, DEVICE, DRY, REFERENCE, SIZES, STEPS, TEXT
from .timing import synchronize

INPUTS = ("sample", "timestep", "encoder_hidden_states", "reward_scores", "reward_text_embeds")  # of MRCUNet.forward
EXACT = ("timestep", "reward_scores")  # stay float32 in half precision


def random_checkpoint() -> Checkpoint:
    """The released architecture with random weights; a tiny one when dry."""
    if DRY:
        return seeded_checkpoint()
    torch.set_num_threads(16)
    tokenizer = byte_tokenizer()
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.18215,
        sample_size=512,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    return Checkpoint(seeded(MRCUNet(**SD15)), seeded(vae), seeded(text_encoder), tokenizer, scheduler)


def eager_engine(precision: str, how: dict | None = None) -> tuple[Engine, Callable[[], Tensor]]:
    """An engine over the eager backend with its modules on the device, and its last U-Net call, to be repeated.

    The backend knows only the CPU: hooks move what enters and what leaves its modules. `how`: arguments of
    `torch.compile`, for the U-Net.
    """
    checkpoint, dtype = load_checkpoint(CHECKPOINT), getattr(torch, precision)
    unet, vae, text_encoder = checkpoint.unet, checkpoint.vae, checkpoint.text_encoder
    for module in (unet, vae, text_encoder):
        nn.Module.to(module, DEVICE, dtype)  # diffusers' own `to` refuses some
    if precision != "float32":
        for module in (unet, vae):
            nn.Module.to(module, memory_format=torch.channels_last)
    if how:
        unet.forward = torch.compile(unet.forward, dynamic=False, **how)
    last: dict[str, Tensor] = {}

    def enter(module: nn.Module, inputs: tuple) -> tuple:
        return tuple(value.to(DEVICE, dtype if value.is_floating_point() else None) for value in inputs)

    def leave(module: nn.Module, inputs: tuple, output: object) -> object:
        return tree_map(lambda value: value.float().cpu() if isinstance(value, Tensor) else value, output)

    def enter_unet(module: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
        inputs = dict(zip(INPUTS, arguments, strict=False)) | keywords
        for name, value in inputs.items():
            last[name] = value.to(DEVICE, torch.float32 if name in EXACT else dtype)
        return (), dict(last)

    unet.register_forward_pre_hook(enter_unet, with_kwargs=True)
    for first in (text_encoder, vae.encoder, vae.post_quant_conv):
        first.register_forward_pre_hook(enter)
    for final in (unet, text_encoder, vae.quant_conv, vae.decoder):
        final.register_forward_hook(leave)
    return Engine(EagerBackend(checkpoint)), lambda: unet.forward(**last)


def torch_engine(precision: str, loop: bool) -> Engine:
    """The `torch` backend; with `loop` latents stay on the device."""
    return Engine.from_pretrained(CHECKPOINT, "torch", precision=precision, loop=loop)


def edit(engine: Engine, size: int, output_type: str, steps: int = STEPS):
    return engine.edit(photograph(size), TEXT, num_inference_steps=steps, seed=0, resolution=0, output_type=output_type)


def measure_edits(report: Report, name: str, engine: Engine, sizes: tuple[int, ...] = SIZES, rounds: int = 4) -> None:
    """Times, memory and distance from the reference of whole edits, one result a size."""
    for size in sizes:
        report.attempt(f"{name} {size}", partial(measure_edit, engine, size, rounds))


def measure_edit(engine: Engine, size: int, rounds: int) -> dict:
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    latents = edit(engine, size, "latent").images
    first = time.perf_counter() - start
    seconds, results = [], []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        results.append(edit(engine, size, "np"))
        seconds.append(time.perf_counter() - start)
    steps = [s for result in results for s in result.step_seconds[1:] or result.step_seconds]
    phases = {phase: median(result.timings[phase] for result in results) for phase in results[0].timings}
    row = {
        "first_edit_s": first,
        "edit_s": median(seconds),
        "edits_s": seconds,
        "step_ms": 1e3 * median(steps),
        "phases_ms": {phase: round(1e3 * value, 3) for phase, value in phases.items()},
    }
    if DEVICE == "cuda":
        row["allocated_GB"] = torch.cuda.max_memory_allocated() / 1e9
        row["reserved_GB"] = torch.cuda.max_memory_reserved() / 1e9
    if (path := REFERENCE / f"{size}.npz").is_file():
        reference = np.load(path)
        row["latents_error"] = relative_error(latents, reference["latents"])
        row["psnr_db"] = psnr(results[0].images[0], reference["image"])
    return row
