"""Batches by number: a function of (seed, step) alone, whatever process asks, whenever.

So a resumed run sees what an undisturbed one sees, and two processes see together what one sees.
"""

import functools
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ...core.errors import MRCError
from .triplet import Triplet, Triplets

REPLACEMENTS = 100  # tries to find a sample in the place of a broken one


@functools.lru_cache(maxsize=2)
def order(length: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of `range(length)`."""
    return np.random.default_rng([seed, 0, epoch]).permutation(length)


def step_indices(step: int, batch_size: int, length: int, seed: int) -> list[int]:
    """Sample numbers of batch `step`; batches run on over the ends of epochs."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(order(length, seed, p // length)[p % length]) for p in positions]


def fit_pair(
    source: Image.Image, edited: Image.Image, size: int, flip: bool, crop: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Both images, float32 `[3, size, size]` in -1…1, scaled, cut and mirrored alike.

    Args:
        crop: place of the square in the longer direction, 0 (left, top) to 1.
    """
    scale = size / min(source.size)
    width, height = (max(size, round(side * scale)) for side in source.size)
    left, top = round((width - size) * crop[0]), round((height - size) * crop[1])

    def fit(image: Image.Image) -> np.ndarray:
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = np.asarray(image, dtype=np.float32)[top : top + size, left : left + size]
        return np.ascontiguousarray((pixels[:, ::-1] if flip else pixels).transpose(2, 0, 1)) / 127.5 - 1

    return fit(source), fit(edited)


class StepBatches(Dataset):
    """Item `step` is this process's share of the global batch of that step.

    A dict: source, edited `[b, 3, size, size]`; instructions, ids; positions `[b]`, unique over the
    run; scores `[b, 3]` and reward_texts, or None where the data has no rewards; broken, the messages
    of samples that could not be read and were replaced by others.
    """

    def __init__(
        self, triplets: Triplets, batch_size: int, size: int, seed: int, rank: int = 0, world_size: int = 1,
        augment: bool = True,
    ) -> None:  # fmt: skip
        self.triplets, self.batch_size, self.size, self.seed = triplets, batch_size, size, seed
        self.rank, self.world_size, self.augment = rank, world_size, augment

    def __getitem__(self, step: int) -> dict:
        share = self.batch_size // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)[mine]
        indices = step_indices(step, self.batch_size, len(self.triplets), self.seed)[mine]
        broken: list[str] = []
        samples = [self.readable(index, p, broken) for index, p in zip(indices, positions, strict=True)]
        pairs = [self.fitted(sample, p) for sample, p in zip(samples, positions, strict=True)]
        rewarded = all(sample.scores is not None for sample in samples)
        return {
            "source": torch.from_numpy(np.stack([source for source, _ in pairs])),
            "edited": torch.from_numpy(np.stack([edited for _, edited in pairs])),
            "instructions": [sample.instruction for sample in samples],
            "scores": torch.tensor([sample.scores for sample in samples], dtype=torch.float32) if rewarded else None,
            "reward_texts": [sample.reward_text for sample in samples] if rewarded else None,
            "ids": [sample.id for sample in samples],
            "positions": torch.tensor(positions),
            "broken": broken,
        }

    def fitted(self, sample: Triplet, position: int) -> tuple[np.ndarray, np.ndarray]:
        flip, crop = False, (0.5, 0.5)
        if self.augment:
            rng = np.random.default_rng([self.seed, 2, position])
            flip, crop = bool(rng.random() < 0.5), (rng.random(), rng.random())
        return fit_pair(sample.source, sample.edited, self.size, flip, crop)

    def readable(self, index: int, position: int, broken: list[str]) -> Triplet:
        """Sample `index`, or one drawn in its place; messages of those that fail go to `broken`."""
        rng = np.random.default_rng([self.seed, 3, position])
        for _ in range(REPLACEMENTS):
            try:
                return self.triplets[index]
            except MRCError as error:
                broken.append(str(error))
                index = int(rng.integers(len(self.triplets)))
        raise MRCError(f"{REPLACEMENTS} samples in a row cannot be read; the last says: {broken[-1]}")


def check_broken(seen: set[str], messages: Iterable[str], limit: int) -> None:
    """Add messages to the distinct ones seen.

    Raises:
        MRCError: they are more than `limit`.
    """
    seen.update(messages)
    if len(seen) > limit:
        first = "; ".join(sorted(seen)[:3])
        raise MRCError(f"{len(seen)} broken samples, more than --broken-limit {limit}: {first}; mend the data")
