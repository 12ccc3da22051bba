"""From checked arguments to what the loop computes: which branches, on which inputs, at which weight.

The guided noise is a weighted sum over branches (docs/mathematics.md):

    s_T · ε(text, image)  +  (s_I - s_T) · ε("", image)  +  (1 - s_I) · ε("", no image)

each branch with a reward of its own, by default the same for all. A negative prompt takes the place of the empty text.
Equal branches are merged and other branches of weight zero are left out, both exactly. A distilled student takes the
scales as conditions and has one branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Reward = tuple[tuple[float, float, float], str]


@dataclass(frozen=True)
class Read:
    """An instruction as the model's reader (SmartEdit) understands it beside the image of that number."""

    image: int
    instruction: str


Text = str | Read
BranchRewards = tuple[Reward, Reward, Reward]  # of the branches with text, with the image alone, with neither


@dataclass(frozen=True)
class Plan:
    """B images, P U-Net inputs (latents with or without the source image, and a reward), N branches.

    Attributes:
        texts: distinct instructions and negative prompts; rewards: (scores, text), each image's own, so that their
            number, which decides how products round, does not depend on which images meet in a batch.
        image: `[P]`, the image of each input; sees_image: `[P]`, whether the input has its source latents.
        reward: `[P]`, index into `rewards`.
        branch: `[N]`, the input of each branch; text: `[N]`, index into `texts`.
        guidance: `[B, N]` float32, weight of each branch in each image's noise; unguided: the same without
            guidance, 1 for the branch with text and source.
        scales: `[R, 2]` float32, the guidance scales of each reward's image, for a student, which embeds them.
    """

    texts: list[Text]
    rewards: list[Reward]
    image: np.ndarray
    sees_image: np.ndarray
    reward: np.ndarray
    branch: np.ndarray
    text: np.ndarray
    guidance: np.ndarray
    unguided: np.ndarray
    scales: np.ndarray

    @property
    def encoded(self) -> list[str]:
        """The distinct texts that the text encoder reads."""
        plain = [text for text in self.texts if isinstance(text, str)]
        return list(dict.fromkeys([*plain, *(text for _, text in self.rewards)]))


def make_plan(
    instructions: Sequence[Text],
    rewards: list[BranchRewards],
    guidance: float,
    image_guidance: float,
    negative_prompts: list[str] | None = None,
    embedded: bool = False,
) -> Plan:
    """Plan one denoising pass over B instructions with their rewards and negative prompts (by default empty).

    Args:
        embedded: the model is a student that embeds the scales: the branch with text and source is all.
    """
    scales = guidance, image_guidance
    guidance, image_guidance = (1.0, 1.0) if embedded else scales
    negatives = negative_prompts or [""] * len(instructions)
    weights: dict[tuple[int, Text, bool, Reward], float] = {}  # (image, text, sees the source, reward) → weight
    for i, (instruction, negative, branch_rewards) in enumerate(zip(instructions, negatives, rewards, strict=True)):
        for text, image, reward, weight in (
            (instruction, True, branch_rewards[0], guidance),
            (negative, True, branch_rewards[1], image_guidance - guidance),
            (negative, False, branch_rewards[2], 1 - image_guidance),
        ):
            weights[i, text, image, reward] = weights.get((i, text, image, reward), 0.0) + weight
    # a tier may ask for the branch with text and source alone, so that stays even at weight zero
    plain = {(i, text, True, chosen[0]) for i, (text, chosen) in enumerate(zip(instructions, rewards, strict=True))}
    branches = [key for key, weight in weights.items() if weight or key in plain]
    inputs = list(dict.fromkeys((i, image, reward) for i, _, image, reward in branches))
    texts = list(dict.fromkeys(text for _, text, _, _ in branches))
    rows = list(dict.fromkeys((i, reward) for i, _, reward in inputs))
    matrix = np.zeros((len(instructions), len(branches)), dtype=np.float32)
    for n, key in enumerate(branches):
        matrix[key[0], n] = weights[key]
    unguided = np.zeros_like(matrix)
    for i, (instruction, branch_rewards) in enumerate(zip(instructions, rewards, strict=True)):
        unguided[i, branches.index((i, instruction, True, branch_rewards[0]))] = 1
    return Plan(
        texts=texts,
        rewards=[reward for _, reward in rows],
        image=np.array([i for i, _, _ in inputs]),
        sees_image=np.array([image for _, image, _ in inputs]),
        reward=np.array([rows.index((i, reward)) for i, _, reward in inputs]),
        branch=np.array([inputs.index((i, image, reward)) for i, _, image, reward in branches]),
        text=np.array([texts.index(text) for _, text, _, _ in branches]),
        guidance=matrix,
        unguided=unguided,
        scales=np.array([scales] * len(rows), dtype=np.float32),
    )
