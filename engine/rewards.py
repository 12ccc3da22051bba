"""The rewards of an edit: the arguments, checked, as those of each image's three branches."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.errors import MRCError
from ..core.reward import BEST, NO_FAULTS, PERSPECTIVES
from .arguments import as_list, check_texts, number, spread
from .manifest import Geometry
from .plan import BranchRewards, Reward

Scores = Sequence[float]
BranchScores = Scores | Mapping[str, Scores]
OTHER_BRANCHES = ("image", "empty")  # those without the instruction: with the source image, and with neither


def each_reward(
    scores: object, text: object, guidance: object, guidance_text: object, count: int
) -> list[BranchRewards]:
    """For each image the rewards of its three branches; the arguments as `EditRequest` has them."""
    columns = (
        spread(each_scores(scores), count, "reward_scores"),
        spread(as_list(text), count, "reward_text"),
        spread(each_scores(guidance), count, "reward_guidance"),
        spread(as_list(guidance_text), count, "reward_guidance_text"),
    )
    return [branch_rewards(*row) for row in zip(*columns, strict=True)]


def check_has_rewards(geometry: Geometry, rewards: list[BranchRewards]) -> None:
    """Refuse rewards for a model that has none."""
    best = (BEST, NO_FAULTS)
    if not geometry.rewards and any(reward != best for branches in rewards for reward in branches):
        raise MRCError(
            f"rewards {rewards[0]} were given to a plain InstructPix2Pix model, which has none; "
            "leave out reward_scores, reward_text and reward_guidance, or use an MRC checkpoint",
            argument="reward_scores",
        )


def branch_rewards(scores: object, text: object, other_scores: object, other_text: object) -> BranchRewards:
    """Rewards of the three branches of one image; None in the other two means those of the first.

    Args:
        other_scores: three scores for both other branches, or by name of `OTHER_BRANCHES`.
    """
    reward = check_reward(scores, text)
    by_branch = other_scores if isinstance(other_scores, dict) else dict.fromkeys(OTHER_BRANCHES, other_scores)
    if unknown := set(by_branch) - set(OTHER_BRANCHES):
        raise MRCError(
            f"reward_guidance names {unknown}; the branches are {', '.join(OTHER_BRANCHES)}", argument="reward_guidance"
        )

    def other(branch: str) -> Reward:
        given = by_branch.get(branch)
        return check_reward(
            reward[0] if given is None else given,
            reward[1] if other_text is None else other_text,
            "reward_guidance",
            "reward_guidance_text",
        )

    return reward, other("image"), other("empty")


def check_reward(scores: object, text: object, name: str = "reward_scores", text_name: str = "reward_text") -> Reward:
    """Three finite scores from 0 to 5 and a text."""
    scores = scores.tolist() if isinstance(scores, np.ndarray) else scores
    if not isinstance(scores, Sequence) or isinstance(scores, str) or len(scores) != 3:
        raise MRCError(f"{name} is {scores!r}; give three numbers: {', '.join(PERSPECTIVES)}", argument=name)
    for perspective, score in zip(PERSPECTIVES, scores, strict=True):
        value = number(score)
        if value is None or not 0 <= value <= 5:
            raise MRCError(f"{name} for {perspective} is {score!r:.40}; give a number from 0 to 5", argument=name)
    if text is not None and not isinstance(text, str):
        raise MRCError(f"{text_name} is {text!r}; give a text such as {NO_FAULTS!r}", argument=text_name)
    check_texts(text or "", text_name)
    first, second, third = (float(score) for score in scores)
    return (first, second, third), NO_FAULTS if text is None else text


def each_scores(value: object) -> list:
    """Scores for each image, or the one value for all."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple | dict | np.ndarray | None):
        return list(value)
    return [value]
