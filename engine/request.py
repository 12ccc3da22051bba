"""The arguments of an edit, declared once, and their checks.

`EditRequest` serves `Engine.edit`, `AsyncEngine.edit` and `mrc-edit`. `check` turns it into one `Edit` an image.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, TypedDict

import numpy as np
from PIL import Image

from ..core.errors import MRCError
from ..core.reward import BEST, NO_FAULTS, PERSPECTIVES
from .arguments import as_list, check_guidance, check_seeds, check_texts, number, spread
from .backends.base import Backend
from .failures import enough_memory
from .framing import FITS, Fit, Frame, framed, make_frame
from .images import ImageLike, load_image
from .plan import BranchRewards, Reward
from .sampling import SAMPLERS, check_sampler, check_steps, sampler_of, sampler_table
from .scheduler_config import MAX_TIMESTEPS

Scores = Sequence[float]
BranchScores = Scores | Mapping[str, Scores]
OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
OTHER_BRANCHES = ("image", "empty")  # those without the instruction: with the source image, and with neither


class EditOptions(TypedDict, total=False):
    """The keywords of `Engine.edit`: the fields of `EditRequest` after image and instruction."""

    reward_scores: Scores | Sequence[Scores]
    reward_text: str | Sequence[str] | None
    reward_guidance: BranchScores | Sequence[BranchScores | None] | None
    reward_guidance_text: str | Sequence[str] | None
    negative_prompt: str | Sequence[str] | None
    num_inference_steps: int | None
    guidance_scale: float | None
    image_guidance_scale: float | None
    scheduler: str | None
    seed: int | Sequence[int] | None
    resolution: int | None
    fit: Fit
    keep_size: bool
    output_type: OutputType


@dataclass(frozen=True)
class EditRequest:
    """What to edit and how. A list holds one value an image and must be as long as the batch.

    Attributes:
        image: path, bytes or file, Pillow image, array or tensor (`engine.images.load_image` has all it takes).
        instruction: what to change; may be empty.
        reward_scores: following, preserving, quality, each 0 to 5.
        reward_text: what may go wrong, three texts joined by "; "; None asks for no faults.
        reward_guidance: scores for the guidance branches without the instruction; low ones steer like a negative
            prompt (docs/reward_guidance.md). Three scores for both, or `{"image": …, "empty": …}` for one or each;
            None gives them `reward_scores`, as released.
        reward_guidance_text: their reward text; None for `reward_text`.
        negative_prompt: what not to make: the text of these branches, as in diffusers; None for the empty text.
        num_inference_steps: 1 to 1000; None for the model's own default, as for the next three.
        guidance_scale: weight of the instruction, from 1. At 1 there is no guidance at all, as in diffusers, whatever
            the other weight.
        image_guidance_scale: weight of the source image, from 1.
        scheduler: euler, euler_ancestral, ddim or dpmpp_2m.
        seed: as for `torch.Generator("cpu").manual_seed`; None draws one and reports it.
        resolution: pixels of the longer side, about; None for what the model was trained at (512 in the release,
            128 for `mini`), 0 keeps the image's size.
        fit: where that size has another aspect ratio, "crop" cuts off the image's edges, as released, "pad" edits it
            whole and "stretch" distorts it a little.
        keep_size: scale the edit back to the size of the image, or of what "crop" left of it.
        output_type: "pil", "np", "pt" (needs PyTorch) or "latent".
    """

    image: ImageLike | Sequence[ImageLike]
    instruction: str | Sequence[str]
    reward_scores: Scores | Sequence[Scores] = BEST
    reward_text: str | Sequence[str] | None = None
    reward_guidance: BranchScores | Sequence[BranchScores | None] | None = None
    reward_guidance_text: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | Sequence[int] | None = None
    resolution: int | None = None
    fit: Fit = "crop"
    keep_size: bool = False
    output_type: OutputType = "pil"


@dataclass(frozen=True)
class Edit:
    """One checked edit; the image already has the size that it is edited at."""

    image: Image.Image
    instruction: str
    rewards: BranchRewards
    seed: int
    frame: Frame
    negative_prompt: str


@dataclass(frozen=True)
class Settings:
    """What all edits of one pass share."""

    guidance: tuple[float, float]  # of the instruction, of the source image
    scheduler: str
    steps: int
    output_type: OutputType


@enough_memory()
def check(backend: Backend, request: EditRequest) -> tuple[list[Edit], Settings]:
    """A request as one edit an image. Nothing that passes here is refused later.

    Raises:
        MRCError: an argument that cannot be used; `argument` has its name.
    """
    check_arguments(request)
    settings = check_settings(backend, request)
    count = batch_size(request)
    rewards = each_reward(request, count)
    check_has_rewards(backend, rewards)
    images, frames = check_images(backend, request)
    columns = (
        spread(images, count, "image"),
        spread(check_texts(request.instruction, "instruction"), count, "instruction"),
        rewards,
        check_seeds(request.seed, count),
        spread(frames, count, "image"),
        spread(check_texts(request.negative_prompt or "", "negative_prompt"), count, "negative_prompt"),
    )
    return [Edit(*row) for row in zip(*columns, strict=True)], settings


def batch_size(request: EditRequest) -> int:
    return max(len(as_list(request.image)), len(as_list(request.instruction)))


def check_arguments(request: EditRequest) -> None:
    """Refuse what no model can use, before one is loaded.

    Raises:
        MRCError: as `check`.
    """
    count = batch_size(request)
    if not count:
        raise MRCError("image and instruction are empty lists; give at least one of each", argument="image")
    if request.output_type not in OUTPUT_TYPES:
        raise MRCError(
            f"output_type is {request.output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}", argument="output_type"
        )
    if request.output_type == "pt" and find_spec("torch") is None:
        raise MRCError("output_type is 'pt', which needs PyTorch; install it, or use 'np'", argument="output_type")
    for name in ("guidance_scale", "image_guidance_scale"):
        if getattr(request, name) is not None:
            check_guidance(getattr(request, name), name)
    if request.num_inference_steps is not None:
        check_steps(request.num_inference_steps, MAX_TIMESTEPS)
    if request.scheduler is not None:
        check_sampler(request.scheduler)
    spread(check_texts(request.instruction, "instruction"), count, "instruction")
    spread(check_texts(request.negative_prompt or "", "negative_prompt"), count, "negative_prompt")
    check_seeds(request.seed, count)
    each_reward(request, count)


def check_settings(backend: Backend, request: EditRequest) -> Settings:
    """The settings of a pass, with the model's defaults for what is not given."""
    defaults = backend.defaults
    scheduler = request.scheduler if request.scheduler is not None else default_sampler(backend)
    steps = defaults.num_inference_steps if request.num_inference_steps is None else request.num_inference_steps
    sampler_table(scheduler, backend.scheduler, steps)  # refuses what it does not know
    text = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    image = defaults.image_guidance_scale if request.image_guidance_scale is None else request.image_guidance_scale
    scales = check_guidance(text, "guidance_scale"), check_guidance(image, "image_guidance_scale")
    guidance = (1.0, 1.0) if scales[0] == 1 else scales  # as in diffusers
    return Settings(guidance, scheduler, steps, request.output_type)


def default_sampler(backend: Backend) -> str:
    """The sampler that the model edits with when none is asked for."""
    sampler = backend.defaults.scheduler or sampler_of(backend.scheduler)
    if sampler is None:
        raise MRCError(
            f"the model's own sampler is {backend.scheduler.get('_class_name')}, which is not among ours; "
            f"choose scheduler {', '.join(SAMPLERS)} (the release uses euler_ancestral)",
            argument="scheduler",
        )
    return sampler


def check_images(backend: Backend, request: EditRequest) -> tuple[list[Image.Image], list[Frame]]:
    """The images, read and at the size that they are edited at, and how they came to it."""
    geometry = backend.geometry
    resolution = geometry.resolution if request.resolution is None else request.resolution
    if request.fit not in FITS:
        raise MRCError(f"fit is {request.fit!r}; choose one of {', '.join(FITS)}", argument="fit")
    if not isinstance(request.keep_size, bool):
        raise MRCError(f"keep_size is {request.keep_size!r}; give True or False", argument="keep_size")
    with naming("image"):
        images = [load_image(image) for image in as_list(request.image)]
    with naming("resolution"):
        frames = [
            make_frame(*image.size, resolution, geometry.multiple, request.fit, request.keep_size) for image in images
        ]
    return [framed(image, frame) for image, frame in zip(images, frames, strict=True)], frames


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Give errors from inside the name of the argument that they are about."""
    try:
        yield
    except MRCError as error:
        error.argument = argument
        raise


def each_reward(request: EditRequest, count: int) -> list[BranchRewards]:
    """For each image the rewards of its three branches."""
    columns = [
        spread(values, count, name)
        for name, values in {
            "reward_scores": each_scores(request.reward_scores),
            "reward_text": as_list(request.reward_text),
            "reward_guidance": each_scores(request.reward_guidance),
            "reward_guidance_text": as_list(request.reward_guidance_text),
        }.items()
    ]
    return [branch_rewards(*row) for row in zip(*columns, strict=True)]


def check_has_rewards(backend: Backend, rewards: list[BranchRewards]) -> None:
    best = (BEST, NO_FAULTS)
    if not backend.geometry.rewards and any(reward != best for branches in rewards for reward in branches):
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
