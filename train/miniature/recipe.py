"""How the shipped checkpoint was made: `mrc-train --preset mini --out OUT --photographs DIR`.

    OUT/vae        the autoencoder
    OUT/init       untrained model around it
    OUT/stage2     editor with rewards
    OUT/baseline   editor without, from the same start for as many steps: what rewards are compared with
    OUT/checkpoint stage 2 in float16, as shipped

Each part that is there is kept and a stopped one goes on, so the same command finishes what was begun.
"""

import os
from pathlib import Path

import torch

from ...errors import MRCError
from ...model.checkpoint import load_checkpoint, save_checkpoint
from .. import autoencoder
from ..config import TrainConfig, preset
from ..loop import train
from .model import miniature_checkpoint

AUTOENCODER_STEPS = 700
STAGES = {"stage2": 2, "baseline": 1}


def reproduce(out: Path, photographs: str | None, seed: int) -> Path:
    """Make the checkpoint from nothing; returns its path.

    Raises:
        MRCError: it was started as several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MRCError("mini is made by one process; start mrc-train without torchrun")
    vae = out / "vae"
    if not vae.is_dir():
        autoencoder.train(vae, Path(photographs) if photographs else None, AUTOENCODER_STEPS, seed)
    if not (out / "init").is_dir():
        save_checkpoint(miniature_checkpoint(vae, seed), out / "init")
    for name, stage in STAGES.items():
        run = out / name
        if (run / "checkpoint").is_dir():
            continue
        config = TrainConfig(
            **preset("mini"),
            init=str(out / "init"),
            out=str(run),
            stage=stage,
            photographs=photographs,
            cache=str(out / "cache"),
            seed=seed,
        )
        train(config, resume="latest" if (run / "states").is_dir() else None)
    shipped = load_checkpoint(out / "stage2" / "checkpoint", torch.float16)
    save_checkpoint(shipped, out / "checkpoint")
    return out / "checkpoint"
