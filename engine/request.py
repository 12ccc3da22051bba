"""The arguments of an edit, declared once, and their checks.

`EditRequest` serves `Engine.edit`, `AsyncEngine.edit` and `mrc-edit`. `check` turns it into one `Edit` an image.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal, TypedDict

from PIL import Image

from ..core.errors import MRCError
from ..core.reward import BEST
from .aliases import check_times, each_generator, each_seed, instruction_of
from .arguments import as_list, check_guidance, check_texts, spread
from .backends.base import Backend
from .embedded import check_limits, check_one_branch
from .failures import enough_memory
from .framing import FITS, Fit, Frame, check_resolution, framed, make_frame, seen
from .images import ImageLike, load_image
from .noise import TorchGenerator
from .plan import BranchRewards
from .rewards import BranchScores, Scores, check_has_rewards, each_reward
from .sampling import SAMPLERS, check_sampler, check_steps, sampler_of, sampler_table
from .scheduler_config import MAX_TIMESTEPS

OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class EditOptions(TypedDict, total=False):
    """The keywords of an edit: the fields of `EditRequest` after image and instruction."""

    prompt: str | Sequence[str] | None
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
    generator: TorchGenerator | Sequence[TorchGenerator] | None
    num_images_per_prompt: int
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
        prompt: diffusers' name of the instruction; one of the two must be given.
        reward_scores: following, preserving, quality, each 0 to 5.
        reward_text: the faults to ask for, three texts joined by "; "; None asks for no faults.
        reward_guidance: scores for the guidance branches without the instruction; low ones steer like a negative
            prompt (docs/reward_guidance.md). Three scores for both, or `{"image": …, "empty": …}` for one or each;
            None gives them `reward_scores`, as released.
        reward_guidance_text: their reward text; None for `reward_text`.
        negative_prompt: what not to make: the text of these branches, as in diffusers; None for the empty text.
        num_inference_steps: 1 to 1000; None for the model's own default, as for the next three.
        guidance_scale: weight of the instruction, from 1 up, for a distilled student to its limit. At 1 there is no
            guidance at all, as in diffusers, whatever the other weight.
        image_guidance_scale: weight of the source image, from 1.
        scheduler: euler, euler_ancestral, ddim, dpmpp_2m or lcm (for models that were distilled for it).
        seed: as for `torch.Generator("cpu").manual_seed`; None draws one and reports it.
        generator: a torch.Generator on the CPU for all images or a list of one an image, in place of a seed, and
            advanced as diffusers does.
        num_images_per_prompt: edits of each image, in a row; their seeds are a list of as many.
        resolution: pixels of the longer side, about; None for what the model was trained at (512 in the release,
            128 for `mini`), 0 keeps the image's size.
        fit: where that size has another aspect ratio, "crop" cuts off the image's edges, as released, "pad" edits it
            whole, "stretch" distorts it a little and "square" makes a square of it, as SmartEdit's release does.
        keep_size: scale the edit back to the size of the image, or of what "crop" left of it.
        output_type: "pil", "np", "pt" (needs PyTorch) or "latent".
    """

    image: ImageLike | Sequence[ImageLike] | None = None
    instruction: str | Sequence[str] | None = None
    prompt: str | Sequence[str] | None = None
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
    generator: TorchGenerator | Sequence[TorchGenerator] | None = None
    num_images_per_prompt: int = 1
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
    frame: Frame
    negative_prompt: str
    seen: Image.Image | None  # the square picture that the reader looks at
    seed: int
    generator: TorchGenerator | None = None  # draws in place of the seed; others may share it


@dataclass(frozen=True)
class Settings:
    """What all edits of one pass share."""

    guidance: tuple[float, float]  # of the instruction, of the source image
    scheduler: str
    steps: int
    output_type: OutputType


@dataclass(frozen=True)
class Checked:
    """A checked request: what the engine edits."""

    edits: list[Edit]
    settings: Settings
    single: bool  # one edit that was not asked for in a list

    @property
    def seed(self) -> int | list[int] | None:
        """That of the result."""
        if self.edits[0].generator is not None:
            return None
        return self.edits[0].seed if self.single else [edit.seed for edit in self.edits]


@enough_memory()
def check(backend: Backend, request: EditRequest) -> Checked:
    """A request as one edit an image. Nothing that passes here is refused later.

    Raises:
        MRCError: an argument that cannot be used; `argument` has its name.
    """
    request = check_arguments(request)
    settings = check_settings(backend, request)
    check_readable(backend, request)
    count, times = batch_size(request), request.num_images_per_prompt
    rewards = checked_rewards(request, count)
    check_has_rewards(backend.geometry, rewards)
    if backend.geometry.embeds_guidance:
        check_one_branch(rewards, as_list(request.negative_prompt or ""))
    images, frames, pictures = check_images(backend, request)
    columns = (
        spread(images, count, "image"),
        spread(as_list(request.instruction), count, "instruction"),
        rewards,
        spread(frames, count, "image"),
        spread(as_list(request.negative_prompt or ""), count, "negative_prompt"),
        spread(pictures, count, "image"),
    )
    rows = [row for row in zip(*columns, strict=True) for _ in range(times)]
    seeds = each_seed(request.seed, request.generator, count, times)
    generators = each_generator(request.generator, len(rows))
    edits = [Edit(*row, *more) for row, *more in zip(rows, seeds, generators, strict=True)]
    lists = any(isinstance(value, list | tuple) for value in (request.image, request.instruction))
    return Checked(edits, settings, single=len(edits) == 1 and not lists)


def check_readable(backend: Backend, request: EditRequest) -> None:
    """Refuse instructions that the reader cannot read, and a model that lacks its reader."""
    if backend.reader:
        for instruction in as_list(request.instruction):
            backend.reader.check(instruction)
    elif backend.geometry.feature_channels:
        raise MRCError(
            "this is an export of SmartEdit, which has no language model; "
            "give reader=FOLDER, the folder it was made from"
        )


def batch_size(request: EditRequest) -> int:
    return max(len(as_list(request.image)), len(as_list(request.instruction)))


def check_arguments(request: EditRequest) -> EditRequest:
    """Refuse what no model can use, before one is loaded.

    Returns:
        The request, its prompt as the instruction.

    Raises:
        MRCError: as `check`.
    """
    request = replace(request, instruction=instruction_of(request.instruction, request.prompt), prompt=None)
    count = batch_size(request)
    if not count:
        raise MRCError("image and instruction are empty lists; give at least one of each", argument="image")
    if request.output_type == "pt" and find_spec("torch") is None:
        raise MRCError("output_type is 'pt', which needs PyTorch; install it, or use 'np'", argument="output_type")
    for name, choices in (("output_type", OUTPUT_TYPES), ("fit", FITS)):
        if (value := getattr(request, name)) not in choices:
            raise MRCError(f"{name} is {value!r}; choose one of {', '.join(choices)}", argument=name)
    if not isinstance(request.keep_size, bool):
        raise MRCError(f"keep_size is {request.keep_size!r}; give True or False", argument="keep_size")
    for name in ("guidance_scale", "image_guidance_scale"):
        if getattr(request, name) is not None:
            check_guidance(getattr(request, name), name)
    if request.num_inference_steps is not None:
        check_steps(request.num_inference_steps, MAX_TIMESTEPS)
    if request.scheduler is not None:
        check_sampler(request.scheduler)
    if request.resolution is not None:
        check_resolution(request.resolution)
    spread(check_texts(request.instruction, "instruction"), count, "instruction")
    spread(check_texts(request.negative_prompt or "", "negative_prompt"), count, "negative_prompt")
    times = check_times(request.num_images_per_prompt)
    each_seed(request.seed, request.generator, count, times)
    each_generator(request.generator, count * times)
    checked_rewards(request, count)
    return request


def checked_rewards(request: EditRequest, count: int) -> list[BranchRewards]:
    return each_reward(
        request.reward_scores, request.reward_text, request.reward_guidance, request.reward_guidance_text, count
    )


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
    if backend.geometry.embeds_guidance:
        check_limits(defaults, guidance)
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


def check_images(
    backend: Backend, request: EditRequest
) -> tuple[list[Image.Image], list[Frame], list[Image.Image | None]]:
    """The images, read and at the size that they are edited at; how they came to it; what the reader sees of them."""
    geometry = backend.geometry
    resolution = geometry.resolution if request.resolution is None else request.resolution
    with naming("image"):
        images = [load_image(image) for image in as_list(request.image)]
    with naming("resolution"):
        frames = [
            make_frame(*image.size, resolution, geometry.multiple, request.fit, request.keep_size) for image in images
        ]
    reader = backend.reader
    resample = Image.Resampling.BICUBIC if reader else Image.Resampling.LANCZOS  # each as released
    edited = [framed(image, frame, resample) for image, frame in zip(images, frames, strict=True)]
    if reader is None:
        return edited, frames, [None] * len(images)
    return edited, frames, [seen(*row, reader.side) for row in zip(images, edited, frames, strict=True)]


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Give errors from inside the name of the argument that they are about."""
    try:
        yield
    except MRCError as error:
        error.argument = argument
        raise
