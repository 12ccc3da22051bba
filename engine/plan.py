"""From checked arguments to what the loop computes: which branches, on which inputs, at which weight.

The guided noise is a weighted sum over branches (docs/mathematics.md):

    s_T · ε(text, image)  +  (s_I - s_T) · ε("", image)  +  (1 - s_I) · ε("", no image)

each of them asked for its own reward, by default all for the same.
Equal branches are merged and branches of weight zero are left out, both exactly.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import MRCError
from ..core.reward import NO_FAULTS, PERSPECTIVES

Reward = tuple[tuple[float, float, float], str]
BranchRewards = tuple[Reward, Reward, Reward]  # of the branches with text, with the image alone, with neither


@dataclass(frozen=True)
class Plan:
    """B images, P U-Net inputs (latents with or without the source image, and a reward), N branches.

    Attributes:
        texts: distinct instructions; rewards: (scores, text), each image's own, so that their number, which
            decides how products round, does not depend on which images meet in a batch.
        item: `[P]`, the image of each input; has_image: `[P]`, whether it sees the source.
        reward: `[P]`, index into `rewards`.
        branch: `[N]`, the input of each branch; text: `[N]`, index into `texts`.
        guidance: `[B, N]` float32, weight of each branch in each image's noise; alone: the same without
            guidance, one for the branch with text and source.
    """

    texts: list[str]
    rewards: list[Reward]
    item: np.ndarray
    has_image: np.ndarray
    reward: np.ndarray
    branch: np.ndarray
    text: np.ndarray
    guidance: np.ndarray
    alone: np.ndarray


def make_plan(instructions: list[str], rewards: list[BranchRewards], guidance: float, image_guidance: float) -> Plan:
    """Plan one denoising pass over B instructions with their rewards."""
    weights: dict[tuple[int, str, bool, Reward], float] = {}  # (image, text, sees the source, reward) → weight
    for i, (instruction, asked) in enumerate(zip(instructions, rewards, strict=True)):
        for text, image, reward, weight in (
            (instruction, True, asked[0], guidance),
            ("", True, asked[1], image_guidance - guidance),
            ("", False, asked[2], 1 - image_guidance),
        ):
            weights[i, text, image, reward] = weights.get((i, text, image, reward), 0.0) + weight
    branches = [key for key, weight in weights.items() if weight]
    inputs = list(dict.fromkeys((i, image, reward) for i, _, image, reward in branches))
    texts = list(dict.fromkeys(text for _, text, _, _ in branches))
    rows = list(dict.fromkeys((i, reward) for i, _, reward in inputs))
    matrix = np.zeros((len(instructions), len(branches)), dtype=np.float32)
    for n, key in enumerate(branches):
        matrix[key[0], n] = weights[key]
    alone = np.zeros_like(matrix)
    for i, (instruction, asked) in enumerate(zip(instructions, rewards, strict=True)):
        alone[i, branches.index((i, instruction, True, asked[0]))] = 1
    return Plan(
        texts=texts,
        rewards=[reward for _, reward in rows],
        item=np.array([i for i, _, _ in inputs]),
        has_image=np.array([image for _, image, _ in inputs]),
        reward=np.array([rows.index((i, reward)) for i, _, reward in inputs]),
        branch=np.array([inputs.index((i, image, reward)) for i, _, image, reward in branches]),
        text=np.array([texts.index(text) for _, text, _, _ in branches]),
        guidance=matrix,
        alone=alone,
    )


def check_guidance(value: Any, name: str) -> float:
    if not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 1:
        raise MRCError(f"{name} is {value!r}; give a number from 1 (no guidance) up")
    return float(value)


def check_reward(scores: Any, text: Any, name: str = "reward_scores", text_name: str = "reward_text") -> Reward:
    """Three finite scores from 0 to 5 and a text."""
    if not isinstance(scores, Sequence | np.ndarray) or isinstance(scores, str) or len(scores) != 3:
        raise MRCError(f"{name} is {scores!r}; give three numbers: {', '.join(PERSPECTIVES)}")
    for perspective, score in zip(PERSPECTIVES, scores, strict=True):
        if not isinstance(score, numbers.Real) or isinstance(score, bool) or not 0 <= float(score) <= 5:
            raise MRCError(f"{name} for {perspective} is {score!r}; give a number from 0 to 5")
    if text is not None and not isinstance(text, str):
        raise MRCError(f"{text_name} is {text!r}; give a text such as {NO_FAULTS!r}")
    first, second, third = (float(score) for score in scores)
    return (first, second, third), NO_FAULTS if text is None else text
