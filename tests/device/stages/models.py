"""The model of the check, and whole edits with it."""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mrc_edit.bench.launches import SD15
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


def random_checkpoint() -> Checkpoint:
    """The released architecture with random weights; a tiny one when dry."""
    if DRY:
        return seeded_checkpoint()
    tokenizer = byte_tokenizer()
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    with torch.device(DEVICE):
        return Checkpoint(*map(seeded, full_size(tokenizer)), tokenizer, scheduler)


def full_size(tokenizer: CLIPTokenizer) -> tuple[MRCUNet, AutoencoderKL, CLIPTextModel]:
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
    return MRCUNet(**SD15), vae, text_encoder


def eager_engine(precision: str, how: dict | None = None) -> tuple[Engine, Callable[[], Tensor]]:
    """An engine over the eager backend, and its last U-Net call, to be repeated.

    Args:
        how: arguments of `torch.compile`, for the U-Net.
    """
    backend = EagerBackend(load_checkpoint(CHECKPOINT), torch.device(DEVICE), getattr(torch, precision))
    call = torch.compile(backend.unet, dynamic=False, **how) if how else backend.unet
    last: list = []

    def unet(*inputs: Tensor, **rewards: Tensor) -> Tensor:
        last[:] = inputs, rewards
        return call(*inputs, **rewards)

    backend.unet = unet
    return Engine(backend), lambda: call(*last[0], **last[1])


def torch_engine(precision: str, **options: object) -> Engine:
    """The `torch` backend."""
    return Engine.from_pretrained(CHECKPOINT, "torch", precision=precision, device=DEVICE, **options)


def edit(engine: Engine, size: int, output_type: str, steps: int = STEPS):
    return engine.edit(photograph(size), TEXT, num_inference_steps=steps, seed=0, resolution=0, output_type=output_type)


def measure_edits(report: Report, name: str, engine: Engine, sizes: tuple[int, ...] = SIZES, rounds: int = 4) -> None:
    """Times, memory and distance from the reference of whole edits, one result a size."""
    for size in sizes:
        report.attempt(f"{name} {size}", lambda size=size: measure_edit(engine, size, rounds)[0])


def measure_edit(engine: Engine, size: int, rounds: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """The result, the latents and the image."""
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
    return row, latents, results[0].images[0]
