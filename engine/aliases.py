"""Arguments by which diffusers' StableDiffusionInstructPix2PixPipeline calls ours, with its meaning.

`prompt` is the instruction, `generator` draws in place of a seed, `num_images_per_prompt` repeats each edit.
"""

from importlib import import_module
from typing import Any

import numpy as np

from ..core.errors import MRCError
from .arguments import as_list, check_seeds


def instruction_of(instruction: Any, prompt: Any) -> Any:
    """The one of the two that is given."""
    if (instruction is None) == (prompt is None):
        given = "neither" if prompt is None else "both"
        raise MRCError(
            f"instruction and prompt are one argument, and {given} is given; give one", argument="instruction"
        )
    return prompt if instruction is None else instruction


def check_times(times: object) -> int:
    if not isinstance(times, int) or isinstance(times, bool) or times < 1:
        raise MRCError(
            f"num_images_per_prompt is {times!r:.40}; give a whole number from 1", argument="num_images_per_prompt"
        )
    return times


def each_seed(seed: object, generator: object, count: int, times: int) -> list[int]:
    """A seed for each of `times` edits of `count` images; of equal ones, equal images would be made.

    Raises:
        MRCError: no seeds, another number of them, or a generator too.
    """
    if seed is None:
        return check_seeds(None, count * times)
    if generator is not None:
        raise MRCError("seed and generator are both given; give one", argument="generator")
    if times > 1 and len(as_list(seed)) != count * times:
        raise MRCError(
            f"{len(as_list(seed))} seeds for {count * times} images, and equal seeds give equal images; give "
            f"{count * times} seeds, a generator, or none",
            argument="seed",
        )
    return check_seeds(seed, count * times)


def each_generator(generator: object, count: int) -> list[Any]:
    """A torch.Generator for each of `count` edits: one that all share, or of a list one each; None without any.

    Raises:
        MRCError: other objects or another number of them, or generators that are not on the CPU.
    """
    generators = as_list(generator)
    if len(generators) not in (1, count):
        raise MRCError(
            f"{len(generators)} generators for {count} images; give one, or one an image", argument="generator"
        )
    for one in generators if generator is not None else ():
        if getattr(getattr(one, "device", None), "type", None) != "cpu" or not hasattr(one, "get_state"):
            raise MRCError(
                f"generator is {one!r}; give torch.Generator('cpu'): the noise of others cannot be drawn here",
                argument="generator",
            )
    return generators if len(generators) == count else generators * count


def to_tensors(images: list[np.ndarray]) -> Any:
    """Images `[H, W, 3]` in 0…1 as torch tensors: `[B, 3, H, W]`, or a list of `[3, H, W]` where sizes differ."""
    torch = import_module("torch")
    channels_first = [np.ascontiguousarray(image.transpose(2, 0, 1)) for image in images]
    if len({image.shape for image in channels_first}) == 1:
        return torch.from_numpy(np.stack(channels_first))
    return [torch.from_numpy(image) for image in channels_first]
