"""The questions to a vision-language model: one a perspective, in the words of `prompts/`."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import TypedDict

from PIL import Image

from ..core.errors import MRCError
from ..core.reward import PERSPECTIVES
from .reply import LONGEST, whole_pairs

VERSION = 1  # of the prompts; raise it with every change of them

# Of structured output. The failure comes first, so that the model reasons before it scores
SCHEMA = {
    "type": "object",
    "properties": {
        "failure": {"type": "string"},
        "verdict": {"type": "string", "enum": ["yes", "no"]},
        "score": {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]},
    },
    "required": ["failure", "verdict", "score"],
    "additionalProperties": False,
}


class Message(TypedDict):
    """Of OpenAI chat completions."""

    role: str
    content: str | list[dict[str, object]]


class Picture:
    """An RGB image with the URL it is sent as and the digest that identifies it, both computed when needed."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image.convert("RGB")

    @cached_property
    def url(self) -> str:
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of size and pixels, independent of the PNG encoder."""
        return hashlib.sha256(repr(self.image.size).encode() + self.image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Question:
    """The prompt of a perspective, and the texts and pictures to judge."""

    prompt: str
    parts: Sequence[str | Picture]

    def messages(self) -> list[Message]:
        content: list[dict[str, object]] = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": part.url}}
            for part in self.parts
        ]
        return [{"role": "system", "content": self.prompt}, {"role": "user", "content": content}]

    @cached_property
    def key(self) -> str:
        """SHA-256 of prompt version and text, instruction and pixels."""
        parts = [part if isinstance(part, str) else {"pixels": part.digest} for part in self.parts]
        return hashlib.sha256(json.dumps([VERSION, self.prompt, parts]).encode()).hexdigest()


@cache
def text(name: str) -> str:
    """A file of `prompts/`."""
    return (files(__package__) / "prompts" / f"{name}.txt").read_text(encoding="utf-8").strip()


def questions(source: Image.Image, edited: Image.Image, instruction: str) -> list[Question]:
    """One question a perspective, in order; the one on quality shows the edited image alone.

    Raises:
        MRCError: an instruction that is no valid text.
    """
    if whole_pairs(instruction) != instruction:
        raise MRCError(f"the instruction {instruction!r} has half a surrogate pair; give valid text")
    before, after = Picture(source), Picture(edited)
    pair = (f"Instruction: {instruction}", "Source image:", before, "Edited image:", after)
    shown = dict.fromkeys(PERSPECTIVES, pair) | {"quality": (after,)}
    return [Question(f"{text(name)}\n\n{text('answer')}", shown[name]) for name in PERSPECTIVES]


def repeated(question: Question, unusable: Sequence[tuple[str, str]]) -> list[Message]:
    """The question's messages, followed by each unusable reply and what was wrong with it."""
    messages = question.messages()
    for reply, fault in unusable:
        messages += [
            {"role": "assistant", "content": reply[:LONGEST] or "(nothing)"},
            {"role": "user", "content": text("again").format(reason=fault)},
        ]
    return messages
