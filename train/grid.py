"""Grids of edits while a run trains: source, the model's edit, the data's edit."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..core.errors import MRCError
from ..core.files import write_file
from ..model.checkpoint import Checkpoint
from ..model.pipeline import decode_latents, edit_latents
from .data import Triplet, Triplets
from .data.batches import fit_pair
from .data.writers import encoded
from .setup import Run
from .smartedit import SmartEditor
from .state import TrainState

GRID = 6  # edits a grid
STEPS = 20  # denoising steps of each
CAPTION = 14  # pixels


def save_grid(run: Run, state: TrainState, triplets: Triplets) -> None:
    """Write `validation/STEP.png`, edited with the averaged weights; the first process writes."""
    state.average.store(state.trained)
    state.average.copy_to(state.trained)
    training = run.editor.training
    run.editor.eval()
    picture = validation_grid(run.checkpoint, triplets, run.config.resolution, partial(read, run))
    if run.accelerator.is_main_process:
        folder = Path(run.config.out) / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / f"{state.step:08d}.png", encoded(picture))
    state.average.restore(state.trained)
    run.editor.train(training)


@torch.no_grad()
def read(run: Run, count: int) -> tuple[Tensor, Tensor] | None:
    """What SmartEdit reads of the first samples, as for `edit_latents`; None for other models."""
    if not isinstance(run.editor, SmartEditor):
        return None
    assert run.image_states is not None
    states, features = (tensor.to(run.accelerator.device) for tensor in run.image_states(np.arange(count)))
    side = run.config.resolution // 2 ** (len(run.checkpoint.vae.config.block_out_channels) - 1)
    return run.editor.read(states, features, side, side)


def validation_grid(
    checkpoint: Checkpoint, triplets: Triplets, size: int,
    read: Callable[[int], tuple[Tensor, Tensor] | None] = lambda count: None,
) -> Image.Image:  # fmt: skip
    """A picture of the data's first samples: source, our edit (asked for 5,5,5), the data's edit.

    Args:
        read: of so many samples, what `edit_latents` takes.
    """
    samples = first_readable(triplets, GRID)
    pairs = [fit_pair(sample.source, sample.edited, size, flip=False, crop=(0.5, 0.5)) for sample in samples]
    sources = torch.from_numpy(np.stack([source for source, _ in pairs])).to(checkpoint.vae.device)
    generators = [torch.Generator().manual_seed(i) for i in range(len(samples))]
    steps, guidance = STEPS, (3.0, 1.5)
    if checkpoint.unet.embeds_guidance:
        own = checkpoint.defaults
        steps, guidance = own.num_inference_steps, (own.guidance_scale, own.image_guidance_scale)
    latents = edit_latents(
        checkpoint, sources, [s.instruction for s in samples], generators, num_inference_steps=steps,
        guidance_scale=guidance[0], image_guidance_scale=guidance[1], read=read(len(samples)),
    )  # fmt: skip
    edits = decode_latents(checkpoint, latents).cpu().numpy()
    rows = [np.concatenate([source, edit, edited], axis=2) for (source, edited), edit in zip(pairs, edits, strict=True)]
    picture = Image.new("RGB", (3 * size, len(rows) * (size + CAPTION)), "white")
    draw = ImageDraw.Draw(picture)
    for i, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        top = i * (size + CAPTION)
        draw.text((2, top + 1), sample.instruction, fill="black")
        pixels = ((row.transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        picture.paste(Image.fromarray(pixels), (0, top + CAPTION))
    return picture


def first_readable(triplets: Triplets, count: int) -> list[Triplet]:
    """The first `count` samples that open; training counts and reports the others."""
    samples: list[Triplet] = []
    for index in range(len(triplets)):
        try:
            samples.append(triplets[index])
        except MRCError:
            continue
        if len(samples) == count:
            break
    return samples
