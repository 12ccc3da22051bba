"""Checks of single arguments of an edit; lists hold one value an image."""

import math
import numbers
import secrets

import numpy as np

from ..core.errors import MRCError
from .text import check_length


def as_list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def spread(values: list, count: int, name: str) -> list:
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise MRCError(
            f"{len(values)} values of {name} for a batch of {count}; give one, or one an image", argument=name
        )
    return values


def number(value: object) -> float | None:
    """A real number as a float, infinite beyond its range; None for anything else."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def check_texts(value: object, name: str) -> list[str]:
    """One text or a list of texts."""
    for text in as_list(value):
        if not isinstance(text, str):
            raise MRCError(f"{name} is {text!r}; give a text", argument=name)
        check_length(text, name)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise MRCError(
                f"{name} has {text[error.start : error.end]!r} at {error.start}, which is no character; give UTF-8",
                argument=name,
            ) from None
    return as_list(value)


def check_guidance(value: object, name: str) -> float:
    scale = number(value)
    if scale is None or not 1 <= scale < math.inf:
        raise MRCError(f"{name} is {value!r:.40}; give a number from 1 (no guidance) up", argument=name)
    return scale


def check_threads(threads: object) -> int:
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise MRCError(f"threads is {threads!r:.40}; give a whole number from 1", argument="threads")
    return threads


def check_seeds(seed: object, count: int) -> list[int]:
    seeds = spread([secrets.randbits(32) for _ in range(count)] if seed is None else as_list(seed), count, "seed")
    for value in seeds:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not -(2**63) <= value < 2**64:
            raise MRCError(f"seed is {value!r:.40}; give a whole number of at most 64 bits, or None", argument="seed")
    return [int(value) for value in seeds]
