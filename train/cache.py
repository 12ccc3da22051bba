"""Latents and texts of a data set, computed once: a cache folder of memory-mapped arrays.

    source.npy [N, 4, h, w] float16    mode of the source image, unscaled
    edited.npy [N, 2, 4, h, w] float16 mean and standard deviation of the edited image, scaled
    scores.npy [N, 3] float32          only if the data has rewards
    texts.json                         ids, instructions, reward texts, broken samples
    key.json                           what it was made from

Cached images are centre crops without flips.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..core.errors import MRCError
from ..core.files import replace_folder
from .data import Triplets
from .data.batches import check_broken, fit_pair, step_indices

ENCODE_BATCH = 32


class Pairs(Dataset):
    """Item i: fitted source and edited image and the texts, or the message of a broken sample."""

    def __init__(self, triplets: Triplets, size: int) -> None:
        self.triplets, self.size = triplets, size

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, index: int) -> dict:
        try:
            triplet = self.triplets[index]
        except MRCError as error:
            return {"broken": str(error)}
        source, edited = fit_pair(triplet.source, triplet.edited, self.size, flip=False, crop=(0.5, 0.5))
        return {
            "images": np.stack([source, edited]),
            "id": triplet.id,
            "instruction": triplet.instruction,
            "scores": triplet.scores,
            "reward_text": triplet.reward_text,
        }


@torch.no_grad()
def build_cache(
    triplets: Triplets, vae: AutoencoderKL, folder: Path, size: int, key: dict, workers: int, broken_limit: int
) -> None:
    """Write the cache whole or not at all; up to `broken_limit` broken samples are left out and named in texts.json.

    Raises:
        MRCError: more broken samples than that, or none that can be read.
    """
    kept: list[dict] = []
    broken = set[str]()
    sources, edits = [], []
    loader = DataLoader(Pairs(triplets, size), ENCODE_BATCH, num_workers=workers, collate_fn=list)
    for items in tqdm(loader, desc="cache latents", unit="batch", disable=None):
        check_broken(broken, (item["broken"] for item in items if "broken" in item), broken_limit)
        items = [item for item in items if "broken" not in item]
        if not items:
            continue
        images = torch.from_numpy(np.concatenate([item.pop("images") for item in items])).to(vae.device)
        posterior = vae.encode(images).latent_dist
        scale = vae.config.scaling_factor
        sources.append(posterior.mode()[0::2].half().cpu().numpy())
        mean_std = torch.stack([posterior.mean[1::2], posterior.std[1::2]], dim=1) * scale
        edits.append(mean_std.half().cpu().numpy())
        kept += items
    if not kept:
        raise MRCError(f"no sample of the data can be read; one says: {min(broken, default='it is empty')}")
    with replace_folder(folder) as out:
        np.save(out / "source.npy", np.concatenate(sources))
        np.save(out / "edited.npy", np.concatenate(edits))
        if all(item["scores"] is not None for item in kept):
            np.save(out / "scores.npy", np.array([item["scores"] for item in kept], dtype=np.float32))
        texts = {name: [item[name] for item in kept] for name in ("id", "instruction", "reward_text")}
        (out / "texts.json").write_text(json.dumps(texts | {"broken": sorted(broken)}))
        (out / "key.json").write_text(json.dumps(key))


class CachedBatches(Dataset):
    """As `StepBatches`, from a cache: `source` and `edited` are latents, `edited` with mean and deviation.

    With `least_score` only of triplets whose three scores are all at least that.

    Raises:
        MRCError: no triplet has such scores.
    """

    def __init__(
        self, folder: Path, batch_size: int, seed: int, rank: int, world_size: int, least_score: int | None = None
    ) -> None:
        self.source = np.load(folder / "source.npy", mmap_mode="r")
        self.edited = np.load(folder / "edited.npy", mmap_mode="r")
        self.scores = np.load(folder / "scores.npy") if (folder / "scores.npy").is_file() else None
        self.texts = json.loads((folder / "texts.json").read_text())
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.rows = np.arange(len(self.source))
        if least_score is not None:
            if self.scores is None:
                raise MRCError(f"the cache {folder} has no rewards to choose triplets by; leave --least-score out")
            self.rows = np.flatnonzero((self.scores >= least_score).all(1))
        if not len(self.rows):
            raise MRCError(f"no triplet of the cache {folder} has three scores of {least_score} or more; give less")

    def __getitem__(self, step: int) -> dict:
        share = self.batch_size // self.world_size
        indices = self.rows[step_indices(step, self.batch_size, len(self.rows), self.seed)]
        indices = indices[self.rank * share : (self.rank + 1) * share]
        first = step * self.batch_size + self.rank * share
        return {
            "source": torch.from_numpy(self.source[indices].astype(np.float32)),
            "edited": torch.from_numpy(self.edited[indices].astype(np.float32)),
            "instructions": [self.texts["instruction"][i] for i in indices],
            "scores": None if self.scores is None else torch.from_numpy(self.scores[indices]),
            "reward_texts": None if self.scores is None else [self.texts["reward_text"][i] for i in indices],
            "ids": [self.texts["id"][i] for i in indices],
            "positions": torch.arange(first, first + share),
            "broken": self.texts["broken"],
        }


def cached_texts(folder: Path) -> set[str]:
    """Every instruction and reward text of a cache."""
    texts = json.loads((folder / "texts.json").read_text())
    return set(texts["instruction"]) | {text for text in texts["reward_text"] if text is not None}


def cache_key(
    data: str, rewards: str | None, drawn: tuple | None, size: int, vae: AutoencoderKL, precision: str
) -> dict:
    """What a cache was made from; `drawn` is what else decides the samples of a drawn world, `precision` what the VAE
    computed in."""
    drawn_from = drawn and list(drawn)
    return {"data": data, "rewards": rewards, "drawn": drawn_from, "size": size, "precision": precision,
            "vae": weights_digest(vae)}  # fmt: skip


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's weights as float32: the same for a float16 file of weights that are float16 numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def open_cache(folder: Path, key: dict) -> bool:
    """Whether `folder` is a cache made from the same things.

    Raises:
        MRCError: it was made from something else, or is a folder of other things.
    """
    if not (folder / "key.json").is_file():
        if folder.exists():
            raise MRCError(f"--cache is {folder}, which is no cache; give a folder that does not exist yet")
        return False
    found = json.loads((folder / "key.json").read_text())
    if found != key:
        raise MRCError(f"the cache {folder} was made from {found}, this run has {key}; give another --cache folder")
    return True
