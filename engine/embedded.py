"""What a distilled student refuses: it has one branch, and has learnt its guidance scales up to a limit."""

from collections.abc import Sequence

from ..core.defaults import Defaults
from ..core.errors import MRCError
from .plan import BranchRewards


def check_one_branch(rewards: Sequence[BranchRewards], negative_prompts: Sequence[str]) -> None:
    """Refuse what only the branches without the instruction would see.

    Raises:
        MRCError: other rewards for these branches, or negative prompts.
    """
    if any(reward != branches[0] for branches in rewards for reward in branches):
        raise MRCError(
            "reward_guidance was given to a distilled student, which has one branch; leave it out and ask by "
            "reward_scores, or use the model it was distilled from",
            argument="reward_guidance",
        )
    if any(negative_prompts):
        raise MRCError(
            "negative_prompt was given to a distilled student, which has one branch; leave it out, or use the model "
            "it was distilled from",
            argument="negative_prompt",
        )


def check_limits(defaults: Defaults, guidance: tuple[float, float]) -> None:
    """Refuse guidance scales that the student has not learnt.

    Raises:
        MRCError: a scale above its limit.
    """
    limits = {"guidance_scale": defaults.guidance_limit, "image_guidance_scale": defaults.image_guidance_limit}
    for scale, (name, limit) in zip(guidance, limits.items(), strict=True):
        if limit is not None and scale > limit:
            raise MRCError(
                f"{name} is {scale:g}, and this student was distilled for scales from 1 to {limit:g}; give less",
                argument=name,
            )
