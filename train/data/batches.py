"""Batches by number: each is a function of (seed, step) alone.

So a resumed run reads the same samples as an undisturbed one, and two processes together those of one.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...core.errors import MRCError
from .triplet import Triplet, Triplets

REPLACEMENTS = 100  # random samples tried in the place of a broken one, before all in order


class LoadedBatch(TypedDict):
    """One process's share of a batch, b samples."""

    source: Tensor  # [b, 3, size, size] in -1…1; from a cache latents [b, Z, h, w], unscaled
    edited: Tensor  # the same; from a cache [b, 2, 4, h, w], mean and standard deviation of the scaled latents
    instructions: list[str]
    scores: Tensor | None  # [b, 3]; None where the data has no rewards
    reward_texts: list[str] | None
    ids: list[str]
    positions: Tensor  # [b], unique over the run
    broken: list[str]  # messages of samples that could not be read
    resized: list[str]  # one for each pair of two sizes
    states: NotRequired[Tensor]  # [b, K, W] of SmartEdit's image tokens
    features: NotRequired[Tensor]  # [b, N, M] of its CLIP


@functools.lru_cache(maxsize=2)
def order(length: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of `range(length)`."""
    return np.random.default_rng([seed, 0, epoch]).permutation(length)


def index_at(position: int, length: int, seed: int) -> int:
    """Sample number of a position in the run, in which epoch follows epoch."""
    return int(order(length, seed, position // length)[position % length])


def step_indices(step: int, batch_size: int, length: int, seed: int) -> list[int]:
    """Sample numbers of batch `step`; batches run on over the ends of epochs."""
    return [index_at(position, length, seed) for position in range(step * batch_size, (step + 1) * batch_size)]


def fit_pair(
    source: Image.Image, edited: Image.Image, size: int, flip: bool, crop: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Both images, float32 `[3, size, size]` in -1…1, scaled, cropped and flipped alike.

    An edited image of another size is squeezed to the source's, as the release squeezes both to one square.

    Args:
        crop: where the square lies along each direction, 0 (left, top) to 1.
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


def two_sizes(sample: Triplet) -> str:
    """Names a pair of two sizes."""
    source, edited = ("×".join(map(str, image.size)) for image in (sample.source, sample.edited))
    return f"sample {sample.id}: source is {source}, edited {edited}"


class StepBatches(Dataset[LoadedBatch]):
    """Item `step` is this process's share of the global batch of that step; broken samples are replaced by others."""

    def __init__(
        self, triplets: Triplets, batch_size: int, size: int, seed: int, rank: int = 0, world_size: int = 1,
        augment: bool = True,
    ) -> None:  # fmt: skip
        self.triplets, self.batch_size, self.size, self.seed = triplets, batch_size, size, seed
        self.rank, self.world_size, self.augment = rank, world_size, augment

    def __getitem__(self, step: int) -> LoadedBatch:
        share = self.batch_size // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)[mine]
        broken: list[str] = []
        samples = [self.readable(position, broken) for position in positions]
        pairs = [self.fit(sample, p) for sample, p in zip(samples, positions, strict=True)]
        scores = [sample.scores for sample in samples if sample.scores is not None]
        texts = [sample.reward_text for sample in samples if sample.reward_text is not None]
        rewarded = len(scores) == len(samples)
        return {
            "source": torch.from_numpy(np.stack([source for source, _ in pairs])),
            "edited": torch.from_numpy(np.stack([edited for _, edited in pairs])),
            "instructions": [sample.instruction for sample in samples],
            "scores": torch.tensor(scores, dtype=torch.float32) if rewarded else None,
            "reward_texts": texts if rewarded else None,
            "ids": [sample.id for sample in samples],
            "positions": torch.tensor(positions),
            "broken": broken,
            "resized": [two_sizes(sample) for sample in samples if sample.source.size != sample.edited.size],
        }

    def fit(self, sample: Triplet, position: int) -> tuple[np.ndarray, np.ndarray]:
        flip, crop = False, (0.5, 0.5)
        if self.augment:
            rng = np.random.default_rng([self.seed, 2, position])
            flip, crop = bool(rng.random() < 0.5), (rng.random(), rng.random())
        return fit_pair(sample.source, sample.edited, self.size, flip, crop)

    def candidates(self, position: int) -> Iterator[int]:
        """The number of the sample of this position in the run, then of those in its place should it be broken."""
        count = len(self.triplets)
        others = np.random.default_rng([self.seed, 3, position]).integers(count, size=REPLACEMENTS)
        return itertools.chain([index_at(position, count, self.seed)], map(int, others), range(count))

    def readable(self, position: int, broken: list[str]) -> Triplet:
        """The sample of a position, or another if it does not open; messages of broken samples go to `broken`."""
        for number in self.candidates(position):
            try:
                return self.triplets[number]
            except MRCError as error:
                broken.append(str(error))
        raise MRCError(f"none of {len(self.triplets)} samples can be read; the last says: {broken[-1]}")
