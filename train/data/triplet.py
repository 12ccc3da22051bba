"""One training example, checked."""

import functools
import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from PIL import Image

from ...core.errors import MRCError
from ...core.reward import PERSPECTIVES
from ...engine.images import ImageLike, load_image

Scores = tuple[float, float, float]
LONGEST_TEXT = 10_000  # characters; a tokenizer takes minutes for millions
LONGEST_RECORD = 1 << 20  # bytes of a sample's JSON
NARROWEST = 32  # longer side over shorter: training enlarges the shorter side, and the longer one along with it

T = TypeVar("T", bound="Reader")


@dataclass(frozen=True)
class Triplet:
    """Source and edited image (RGB), instruction, and the reward of the edit if there is one.

    `scores` are following, preserving, quality, 0–5; `reward_text` is three texts joined by "; ",
    "None" where nothing went wrong; `id` names the sample in errors and reports.
    """

    id: str
    source: Image.Image
    edited: Image.Image
    instruction: str
    scores: Scores | None = None
    reward_text: str | None = None


class Triplets(Protocol):
    """A data set by number; opening a broken sample raises an MRCError that names it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Triplet: ...


class Reader(Triplets, Protocol):
    """A data set in files."""

    def name(self, index: int) -> str:
        """Of a sample, for errors."""


def named(read: Callable[[T, int], Triplet]) -> Callable[[T, int], Triplet]:
    """Make whatever goes wrong in a reader's `__getitem__` an MRCError that names the sample.

    Decoders of damaged files raise nearly every type of exception.
    """

    @functools.wraps(read)
    def checked(triplets: T, index: int) -> Triplet:
        try:
            return read(triplets, index)
        except MRCError as error:
            if str(error).startswith("sample "):
                raise
            raise MRCError(f"sample {triplets.name(index)}: {error}") from None
        except Exception as error:
            raise MRCError(
                f"sample {triplets.name(index)} cannot be read ({type(error).__name__}: {str(error)[:200]})"
            ) from None

    return checked


def read_record(data: bytes) -> dict:
    """A sample's JSON object.

    Raises:
        MRCError: something else, or more than `LONGEST_RECORD` bytes.
    """
    if len(data) > LONGEST_RECORD:
        raise MRCError(f"its JSON has {len(data):,} bytes, more than {LONGEST_RECORD:,}")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MRCError(f"its JSON cannot be read ({type(error).__name__}: {error})") from None
    if not isinstance(record, dict):
        raise MRCError(f"its JSON is a {type(record).__name__}, not an object")
    return record


def make_triplet(
    name: str,
    source: ImageLike,
    edited: ImageLike,
    instruction: object,
    scores: object = None,
    reward_text: object = None,
) -> Triplet:
    """A triplet of values read from a data set, checked; scores and reward text come together or not at all.

    Raises:
        MRCError: an image that does not open, a very narrow one, an instruction that is empty, too long or no valid
            text, scores outside 0–5.
    """
    images = []
    for role, image in (("source", source), ("edited", edited)):
        try:
            images.append(load_image(image))
        except MRCError as error:
            raise MRCError(f"sample {name}, {role} image: {error}") from None
    for size in (image.size for image in images):
        if max(size) > NARROWEST * min(size):
            raise MRCError(f"sample {name}: {size} is too narrow, the limit is {NARROWEST} to 1; crop it")
    instruction = check_text(name, "instruction", instruction)
    if not instruction.strip():
        raise MRCError(f"sample {name}: the instruction is {instruction!r}; give a text")
    if (scores is None) != (reward_text is None):
        raise MRCError(f"sample {name} has {'a reward text' if scores is None else 'scores'} alone; give both or none")
    text = None if reward_text is None else check_text(name, "reward text", reward_text)
    return Triplet(name, images[0], images[1], instruction, check_scores(name, scores), text)


def check_text(name: str, what: str, value: object) -> str:
    """A text that files and tokenizers take.

    Raises:
        MRCError: something else.
    """
    if not isinstance(value, str):
        raise MRCError(f"sample {name}: the {what} is {reprlib.repr(value)}; give a text")
    if len(value) > LONGEST_TEXT:
        raise MRCError(f"sample {name}: the {what} has {len(value):,} characters; the limit is {LONGEST_TEXT:,}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MRCError(f"sample {name}: the {what} has half a surrogate pair; give valid text") from None
    return value


def check_scores(name: str, scores: object) -> Scores | None:
    """Three numbers from 0 to 5, or None.

    Raises:
        MRCError: something else.
    """
    if scores is None:
        return None
    if not isinstance(scores, Sequence) or isinstance(scores, str) or len(scores) != len(PERSPECTIVES):
        raise MRCError(
            f"sample {name}: the scores are {reprlib.repr(scores)}; give three numbers: {', '.join(PERSPECTIVES)}"
        )
    for perspective, score in zip(PERSPECTIVES, scores, strict=True):
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not 0 <= score <= 5:
            raise MRCError(
                f"sample {name}: the score for {perspective} is {reprlib.repr(score)}; give a number from 0 to 5"
            )
    following, preserving, quality = map(float, scores)
    return following, preserving, quality
