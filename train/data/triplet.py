"""One training example, checked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from ...core.errors import MRCError
from ...core.reward import PERSPECTIVES
from ...engine.images import ImageLike, load_image

Scores = tuple[float, float, float]


@dataclass(frozen=True)
class Triplet:
    """Source and edited image (RGB, the same size), instruction, and the reward of the edit if there is one.

    `scores` are following, preserving, quality, 0–5; `reward_text` is three texts joined by "; ",
    "None" where nothing went wrong; `id` names the sample in errors and reports.
    """

    id: str
    source: Image.Image
    edited: Image.Image
    instruction: str
    scores: Scores | None = None
    reward_text: str | None = None


class Triplets(Protocol):
    """A data set by number; opening a broken sample raises an MRCError that names it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Triplet: ...


def make_triplet(
    name: str,
    source: ImageLike,
    edited: ImageLike,
    instruction: object,
    scores: object = None,
    reward_text: object = None,
) -> Triplet:
    """A triplet of values read from a data set, checked; scores and reward text come together or not at all.

    Raises:
        MRCError: an image that does not open, two sizes, an empty instruction, scores outside 0–5.
    """
    images = []
    for role, image in (("source", source), ("edited", edited)):
        try:
            images.append(load_image(image))
        except MRCError as error:
            raise MRCError(f"sample {name}, {role} image: {error}") from None
    if images[0].size != images[1].size:
        raise MRCError(f"sample {name}: source is {images[0].size}, edited {images[1].size}; they must be one size")
    if not isinstance(instruction, str) or not instruction.strip():
        raise MRCError(f"sample {name}: the instruction is {instruction!r}; give a text")
    if (scores is None) != (reward_text is None):
        raise MRCError(f"sample {name} has {'a reward text' if scores is None else 'scores'} alone; give both or none")
    if reward_text is not None and not isinstance(reward_text, str):
        raise MRCError(f"sample {name}: the reward text is {reward_text!r}; give a text such as 'None; None; None'")
    return Triplet(name, images[0], images[1], instruction, check_scores(name, scores), reward_text)


def check_scores(name: str, scores: object) -> Scores | None:
    """Three numbers from 0 to 5, or None.

    Raises:
        MRCError: something else.
    """
    if scores is None:
        return None
    if not isinstance(scores, Sequence) or isinstance(scores, str) or len(scores) != len(PERSPECTIVES):
        raise MRCError(f"sample {name}: the scores are {scores!r}; give three numbers: {', '.join(PERSPECTIVES)}")
    for perspective, score in zip(PERSPECTIVES, scores, strict=True):
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not math.isfinite(score) or not 0 <= score <= 5:
            raise MRCError(f"sample {name}: the score for {perspective} is {score!r}; give a number from 0 to 5")
    following, preserving, quality = map(float, scores)
    return following, preserving, quality
