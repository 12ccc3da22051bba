"""The recipe of the shipped checkpoint: `mrc-train --preset mini --out OUT --photographs DIR`.

    OUT/autoencoder   the VAE
    OUT/init          the untrained model with this VAE
    OUT/stage1        editor and text encoder, trained without rewards on the triplets with full scores
    OUT/stage2        that editor, trained with rewards on all triplets
    OUT/baseline      that editor, trained without rewards on all triplets for as many steps, for comparison
    OUT/checkpoint    stage 2 in float16, as shipped
    OUT/training.json the records of the four runs

Finished parts stay and a stopped one goes on, so the same command finishes an interrupted run.
"""

import os
from pathlib import Path

import torch

from ...core.errors import MRCError
from ...core.files import read_json, write_json
from ...core.locks import locked
from ...model.checkpoint import load_checkpoint, save_checkpoint
from .. import autoencoder
from ..config import TrainConfig, preset
from ..loop import train
from ..run_folder import check_own
from .model import miniature_checkpoint

FIRST = {"stage": 1, "steps": 10_000, "learning_rate": 1e-3, "least_score": 5, "train_text_encoder": True}
# Of each stage: the checkpoint to start from, and its settings besides the preset
STAGES: dict[str, tuple[str, dict]] = {
    "stage1": ("init", FIRST),
    "stage2": ("stage1/checkpoint", {"stage": 2}),
    "baseline": ("stage1/checkpoint", {"stage": 1}),
}


def reproduce(out: Path, photographs: str | None, seed: int) -> Path:
    """Train everything from nothing; returns the checkpoint's path.

    Raises:
        MRCError: it was started as several processes, or another run is writing `out`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MRCError("mini is trained by one process; start mrc-train without torchrun")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, inside=True, wait=False):
        return reproduce_in_folder(out, photographs, seed)


def reproduce_in_folder(out: Path, photographs: str | None, seed: int) -> Path:
    """`reproduce` in a folder that is this run's alone."""
    vae = out / "autoencoder" / "vae"
    if not vae.is_dir():
        autoencoder.train(out / "autoencoder", photographs, autoencoder.STEPS, seed)
    if not (out / "init").is_dir():
        save_checkpoint(miniature_checkpoint(vae, seed), out / "init")
    for name, (start, settings) in STAGES.items():
        run = out / name
        if (run / "checkpoint").is_dir():
            continue
        common = {"init": str(out / start), "out": str(run), "cache": str(out / "cache")}
        config = TrainConfig(**preset("mini") | common | settings, photographs=photographs, seed=seed)
        train(config, resume="latest" if run.is_dir() else None)
    remedy = "remove the folder and run the command again"
    records = {name: read_json(out / name / "training.json", remedy) for name in ("autoencoder", *STAGES)}
    write_json(out / "training.json", records)
    shipped = load_checkpoint(out / "stage2" / "checkpoint", torch.float16)
    save_checkpoint(shipped, out / "checkpoint", check_own)
    return out / "checkpoint"
