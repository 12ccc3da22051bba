"""What is asked of the engine: the arguments of `Engine.edit`, checked, one `Request` an image."""

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import MRCError
from ..core.reward import BEST
from .backends import Backend
from .images import fit, load_image
from .plan import BranchRewards, Reward, check_guidance, check_reward
from .sampling import sampler_table

OUTPUT_TYPES = ("pil", "np", "latent")
OTHER_BRANCHES = ("image", "empty")  # those without the instruction: with the source image, and with neither


@dataclass(frozen=True)
class Request:
    """One edit; the image already has the size that it is edited at."""

    image: Image.Image
    instruction: str
    rewards: BranchRewards
    seed: int


@dataclass(frozen=True)
class Settings:
    """What all images of one pass share."""

    guidance: tuple[float, float]  # of the instruction, of the source image
    scheduler: str
    steps: int
    output_type: str


def check(
    backend: Backend,
    *,
    image: Any,
    instruction: Any,
    reward_scores: Any,
    reward_text: Any,
    reward_guidance: Any,
    reward_guidance_text: Any,
    num_inference_steps: Any,
    guidance_scale: Any,
    image_guidance_scale: Any,
    scheduler: Any,
    seed: Any,
    resolution: Any,
    output_type: Any,
) -> tuple[list[Request], Settings]:
    """The arguments of `Engine.edit`, checked: nothing that passes here is refused later.

    Raises:
        MRCError: an argument that cannot be used.
    """
    geometry = backend.geometry
    size = geometry.resolution if resolution is None else resolution
    images = [fit(load_image(one), size, geometry.multiple) for one in as_list(image)]
    instructions = as_list(instruction)
    count = max(len(images), len(instructions))
    if not count:
        raise MRCError("image and instruction are empty lists; give at least one of each")
    images = spread(images, count, "image")
    instructions = spread(instructions, count, "instruction")
    for text in instructions:
        if not isinstance(text, str):
            raise MRCError(f"instruction is {text!r}; give a text")
    rewards = [
        branch_rewards(*asked)
        for asked in zip(
            spread(each_scores(reward_scores), count, "reward_scores"),
            spread(as_list(reward_text), count, "reward_text"),
            spread(each_scores(reward_guidance), count, "reward_guidance"),
            spread(as_list(reward_guidance_text), count, "reward_guidance_text"),
            strict=True,
        )
    ]
    if not geometry.rewards and any(reward != check_reward(BEST, None) for asked in rewards for reward in asked):
        raise MRCError(
            f"rewards {rewards[0]} were asked of a plain InstructPix2Pix model, which has none; "
            "leave out reward_scores, reward_text and reward_guidance, or use an MRC checkpoint"
        )
    guidance = (
        check_guidance(guidance_scale, "guidance_scale"),
        check_guidance(image_guidance_scale, "image_guidance_scale"),
    )
    sampler_table(scheduler, backend.scheduler, num_inference_steps)  # refuses what it does not know
    seeds = check_seeds(seed, count)
    if output_type not in OUTPUT_TYPES:
        raise MRCError(f"output_type is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}")
    requests = [Request(*asked) for asked in zip(images, instructions, rewards, seeds, strict=True)]
    return requests, Settings(guidance, scheduler, num_inference_steps, output_type)


def branch_rewards(scores: Any, text: Any, other_scores: Any, other_text: Any) -> BranchRewards:
    """Rewards of the three branches of one image; None in the other two asks what the first is asked.

    Args:
        other_scores: three scores for both other branches, or by name of `OTHER_BRANCHES`.
    """
    reward = check_reward(scores, text)
    by_branch = other_scores if isinstance(other_scores, dict) else dict.fromkeys(OTHER_BRANCHES, other_scores)
    if unknown := set(by_branch) - set(OTHER_BRANCHES):
        raise MRCError(f"reward_guidance names {unknown}; the branches are {', '.join(OTHER_BRANCHES)}")

    def other(branch: str) -> Reward:
        asked = by_branch.get(branch)
        return check_reward(
            reward[0] if asked is None else asked,
            reward[1] if other_text is None else other_text,
            "reward_guidance",
            "reward_guidance_text",
        )

    return reward, other("image"), other("empty")


def each_scores(value: Any) -> list:
    """Scores one an image, or the one that serves all."""
    many = isinstance(value, list | tuple | np.ndarray) and len(value) > 0
    return list(value) if many and isinstance(value[0], list | tuple | dict | np.ndarray | None) else [value]


def as_list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def spread(values: list, count: int, name: str) -> list:
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise MRCError(f"{len(values)} values of {name} for a batch of {count}; give one, or one an image")
    return values


def check_seeds(seed: object, count: int) -> list[int]:
    seeds = spread([secrets.randbits(32) for _ in range(count)] if seed is None else as_list(seed), count, "seed")
    for value in seeds:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not -(2**63) <= value < 2**64:
            raise MRCError(f"seed is {value!r}; give a whole number of at most 64 bits, or None")
    return [int(value) for value in seeds]
