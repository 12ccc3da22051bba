"""Arguments by which diffusers' StableDiffusionInstructPix2PixPipeline calls ours, with its meaning.

`prompt` is the instruction, `generator` draws in place of a seed, `num_images_per_prompt` repeats each edit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from ..core.errors import MRCError
from .arguments import as_list, check_seeds
from .noise import of_torch, store_torch
from .request import Edit, EditRequest


def instruction_of(instruction: Any, prompt: Any) -> Any:
    """The one of the two that is given."""
    if (instruction is None) == (prompt is None):
        given = "neither" if prompt is None else "both"
        raise MRCError(
            f"instruction and prompt are one argument, and {given} is given; give one", argument="instruction"
        )
    return prompt if instruction is None else instruction


def repeated(edits: list[Edit], times: object, request: EditRequest, generator: object) -> list[Edit]:
    """Each edit `times` times in a row, each with a seed of its own."""
    if not isinstance(times, int) or isinstance(times, bool) or times < 1:
        raise MRCError(
            f"num_images_per_prompt is {times!r}; give a whole number from 1", argument="num_images_per_prompt"
        )
    if times == 1:
        return edits
    many = [edit for edit in edits for _ in range(times)]
    seeds = as_list(request.seed)
    if generator is None and request.seed is not None and len(seeds) != len(many):
        raise MRCError(
            f"{len(seeds)} seeds for {len(many)} images, and equal seeds give equal images; give {len(many)} seeds, "
            "a generator, or none",
            argument="seed",
        )
    fresh = check_seeds(request.seed, len(many))
    return [replace(edit, seed=seed) for edit, seed in zip(many, fresh, strict=True)]


@contextmanager
def drawn_from(generator: object, count: int) -> Iterator[list[np.random.RandomState] | None]:
    """The states of one torch.Generator for `count` images, or of one each; what is drawn advances the generators.

    Raises:
        MRCError: other objects or another number of them, or generators that are not on the CPU.
    """
    if generator is None:
        yield None
        return
    generators = as_list(generator)
    if len(generators) not in (1, count):
        raise MRCError(
            f"{len(generators)} generators for {count} images; give one, or one an image", argument="generator"
        )
    for one in generators:
        if getattr(getattr(one, "device", None), "type", None) != "cpu" or not hasattr(one, "get_state"):
            raise MRCError(
                f"generator is {one!r}; give torch.Generator('cpu'): the noise of others cannot be drawn here",
                argument="generator",
            )
    states = {id(one): of_torch(one) for one in generators}
    every = generators if len(generators) == count else generators * count
    try:
        yield [states[id(one)] for one in every]
    finally:
        for one in generators:
            store_torch(states[id(one)], one)


def to_tensors(images: list[np.ndarray]) -> Any:
    """Images `[H, W, 3]` in 0…1 as torch tensors: `[B, 3, H, W]`, or a list of `[3, H, W]` where sizes differ."""
    torch = import_module("torch")
    channels_first = [np.ascontiguousarray(image.transpose(2, 0, 1)) for image in images]
    if len({image.shape for image in channels_first}) == 1:
        return torch.from_numpy(np.stack(channels_first))
    return [torch.from_numpy(image) for image in channels_first]
