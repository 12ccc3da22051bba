"""Latents and texts of a data set, computed once: a cache folder of memory-mapped arrays.

    source.npy [N, C, h, w] float16    mode of the source image, unscaled; C latent channels
    edited.npy [N, 2, C, h, w] float16 mean and standard deviation of the edited image, scaled
    scores.npy [N, 3] float32          only if the data has rewards
    texts.json                         ids, instructions, reward texts, broken samples, pairs of two sizes
    key.json                           data, size and VAE it was computed from

Cached images are centre crops without flips.
"""

import hashlib
import json
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..core.errors import MRCError
from ..core.files import read_json, swapped_folder
from ..model.tiny_vae import Vae
from .arrays import growing_array, write_array
from .data import Triplets, data_digest
from .data.batches import LoadedBatch, fit_pair, step_indices, two_sizes
from .data.notes import check_broken, say_counts
from .data.triplet import Scores
from .image_states import ImageStates
from .stored import check_texts, finite_rows, read_array
from .workers import end_when_stopped, from_workers

ENCODE_BATCH = 32
REMEDY = "remove the cache, the next run builds it again"


class Record(TypedDict):
    """What `texts.json` and `scores.npy` say of a triplet."""

    id: str
    instruction: str
    scores: Scores | None
    reward_text: str | None
    resized: str | None  # names a pair of two sizes


class Samples(Dataset[tuple[np.ndarray, Record] | str]):
    """Item i: images `[2, 3, size, size]` in -1…1, source and edited, and the record; or a broken sample's message."""

    def __init__(self, triplets: Triplets, size: int) -> None:
        self.triplets, self.size = triplets, size

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Record] | str:
        try:
            triplet = self.triplets[index]
        except MRCError as error:
            return str(error)
        images = np.stack(fit_pair(triplet.source, triplet.edited, self.size, flip=False, crop=(0.5, 0.5)))
        return images, {
            "id": triplet.id,
            "instruction": triplet.instruction,
            "scores": triplet.scores,
            "reward_text": triplet.reward_text,
            "resized": two_sizes(triplet) if triplet.source.size != triplet.edited.size else None,
        }


@torch.no_grad()
def build_cache(
    triplets: Triplets, vae: Vae, folder: Path, size: int, key: dict, workers: int, broken_limit: int | None
) -> None:
    """Write the cache whole or not at all; the caller holds its lock.

    Up to `broken_limit` broken samples are left out; the terminal and texts.json name them.

    Raises:
        MRCError: more broken samples than that, or none that can be read; latents that are not finite.
    """
    records: list[Record] = []
    broken = set[str]()
    loader = DataLoader(
        Samples(triplets, size), ENCODE_BATCH, num_workers=workers, collate_fn=list, worker_init_fn=end_when_stopped
    )
    with swapped_folder(folder) as out:
        with growing_array(out / "source.npy") as append_source, growing_array(out / "edited.npy") as append_edited:
            progress = tqdm(from_workers(loader), total=len(loader), desc="cache latents", unit="batch", disable=None)
            for items in progress:
                check_broken(broken, (item for item in items if isinstance(item, str)), broken_limit)
                readable = [item for item in items if not isinstance(item, str)]
                if not readable:
                    continue
                source, edited = encode(vae, readable)
                append_source(source)
                append_edited(edited)
                records += [record for _, record in readable]
        if not records:
            raise MRCError(f"no sample of the data can be read; one says: {min(broken, default='it is empty')}")
        say_counts(len(broken), sum(record["resized"] is not None for record in records), len(records))
        if all(record["scores"] is not None for record in records):
            write_array(out / "scores.npy", [np.array([record["scores"] for record in records], dtype=np.float32)])
        texts: dict[str, list] = {
            "id": [record["id"] for record in records],
            "instruction": [record["instruction"] for record in records],
            "reward_text": [record["reward_text"] for record in records],
            "resized": [record["resized"] for record in records],
            "broken": sorted(broken),
        }
        (out / "texts.json").write_text(json.dumps(texts))
        (out / "key.json").write_text(json.dumps(key))


def encode(vae: Vae, samples: list[tuple[np.ndarray, Record]]) -> tuple[np.ndarray, np.ndarray]:
    """Source latents `[B, C, h, w]` and moments of the edited latents `[B, 2, C, h, w]` of `Samples`, float16.

    The VAE computes in its own precision, float32: that of Stable Diffusion 1.5 overflows float16.

    Raises:
        MRCError: latents that are not finite.
    """
    images = torch.from_numpy(np.concatenate([images for images, _ in samples]))
    posterior = vae.encode(images.to(vae.device)).latent_dist
    source = posterior.mode()[0::2].half()
    moments = (torch.stack([posterior.mean[1::2], posterior.std[1::2]], dim=1) * vae.config.scaling_factor).half()
    for latents, moment, (_, record) in zip(source, moments, samples, strict=True):
        if not (latents.isfinite().all() and moment.isfinite().all()):
            raise MRCError(f"the VAE gives latents of {record['id']} that float16 does not hold; give another --vae")
    return source.cpu().numpy(), moments.cpu().numpy()


class CachedBatches(Dataset[LoadedBatch]):
    """As `StepBatches`, from a cache.

    With `least_score` only triplets whose three scores are all at least that. With `image_states`, of the same rows,
    what SmartEdit is conditioned on.

    Raises:
        MRCError: files that are missing or damaged, or no triplet has such scores.
    """

    def __init__(
        self, folder: Path, batch_size: int, seed: int, rank: int, world_size: int, least_score: int | None = None,
        image_states: ImageStates | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.source = read_array(folder / "source.npy", np.float16, (None, None, None, None), REMEDY)
        count, *latent = self.source.shape
        self.edited = read_array(folder / "edited.npy", np.float16, (count, 2, *latent), REMEDY)
        self.scores = read_scores(folder / "scores.npy", count)
        self.texts = read_texts(folder, count, rewarded=self.scores is not None)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.image_states = image_states
        self.rows = np.arange(len(self.source))
        if least_score is not None:
            if self.scores is None:
                raise MRCError(f"the cache {folder} has no rewards to choose triplets by; leave --least-score out")
            self.rows = np.flatnonzero((self.scores >= least_score).all(1))
            if not len(self.rows):
                raise MRCError(f"no triplet of the cache {folder} has three scores of {least_score} or more; give less")

    def __getitem__(self, step: int) -> LoadedBatch:
        share = self.batch_size // self.world_size
        indices = self.rows[step_indices(step, self.batch_size, len(self.rows), self.seed)]
        indices = indices[self.rank * share : (self.rank + 1) * share]
        first = step * self.batch_size + self.rank * share
        batch: LoadedBatch = {
            "source": finite_rows(self.source, indices, f"{self.folder}/source.npy", REMEDY),
            "edited": finite_rows(self.edited, indices, f"{self.folder}/edited.npy", REMEDY),
            "instructions": [self.texts["instruction"][i] for i in indices],
            "scores": None if self.scores is None else torch.from_numpy(self.scores[indices]),
            "reward_texts": None if self.scores is None else [self.texts["reward_text"][i] for i in indices],
            "ids": [self.texts["id"][i] for i in indices],
            "positions": torch.arange(first, first + share),
            "broken": [],  # which the run that filled the cache named
            "resized": [self.texts["resized"][i] for i in indices if self.texts["resized"][i] is not None],
        }
        if self.image_states:
            batch["states"], batch["features"] = self.image_states(indices)
        return batch


def read_scores(path: Path, count: int) -> np.ndarray | None:
    """Scores `[count, 3]`; None if the cache has none.

    Raises:
        MRCError: damaged ones.
    """
    if not path.exists():
        return None
    scores = np.array(read_array(path, np.float32, (count, 3), REMEDY))
    if not ((scores >= 0) & (scores <= 5)).all():
        raise MRCError(f"{path} holds scores that are not from 0 to 5; {REMEDY}")
    return scores


def read_texts(folder: Path, count: int | None = None, rewarded: bool = False) -> dict[str, list]:
    """The content of texts.json, for `count` triplets.

    Raises:
        MRCError: it is missing or damaged.
    """
    path = folder / "texts.json"
    texts = read_json(path, REMEDY)
    for name in ("id", "instruction"):
        check_texts(texts.get(name), count, path, REMEDY)
    check_texts(texts.get("reward_text"), count, path, REMEDY, optional=not rewarded)
    check_texts(texts.get("broken"), None, path, REMEDY)
    texts.setdefault("resized", [None] * len(texts["id"]))  # older caches have no such pairs
    check_texts(texts["resized"], count, path, REMEDY, optional=True)
    return texts


def cached_texts(folder: Path) -> set[str]:
    """Every instruction and reward text of a cache."""
    texts = read_texts(folder)
    return set(texts["instruction"]) | {text for text in texts["reward_text"] if text is not None}


def cache_key(data: str, rewards: str | None, drawn: tuple | None, size: int, vae: Vae) -> dict:
    """Everything that decides a cache's numbers.

    Args:
        drawn: what else decides the samples of the miniature world.
    """
    return {
        "data": data, "rewards": rewards, "listed": data_digest(data, rewards), "drawn": drawn and list(drawn),
        "size": size, "vae": weights_digest(vae),
    }  # fmt: skip


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's weights as float32, so that a float16 copy of float16 numbers has the same digest."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def open_cache(folder: Path, key: dict) -> bool:
    """Whether `folder` is there; then it is a cache with this key.

    Raises:
        MRCError: it is a cache with another key, or no cache.
    """
    if not (folder / "key.json").is_file():
        if folder.exists():
            raise MRCError(f"--cache is {folder}, which is no cache; give a folder that does not exist yet")
        return False
    cached = read_json(folder / "key.json", REMEDY)
    if cached != key:
        raise MRCError(f"the cache {folder} was made from {cached}, this run has {key}; give another --cache folder")
    return True
