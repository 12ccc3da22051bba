"""What a vision-language model is asked: a question a perspective, in the words of `prompts/`."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from PIL import Image

from ..core.reward import PERSPECTIVES

VERSION = 1  # of the prompts; goes up with every change of them

# What structured output is held to. The failure comes first, so that the score can rest on it
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


class Picture:
    """An RGB image; how it is sent and what it is known by are made when they are first needed."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image.convert("RGB")

    @cached_property
    def url(self) -> str:
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    @cached_property
    def digest(self) -> str:
        """Of size and pixels: the same whatever Pillow's PNG encoder does."""
        return hashlib.sha256(repr(self.image.size).encode() + self.image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Question:
    """The prompt of a perspective, and the texts and pictures that it is about."""

    prompt: str
    parts: Sequence[str | Picture]

    def messages(self) -> list[dict[str, Any]]:
        """As OpenAI chat completions take it."""
        content = [
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
    return (files(__package__) / "prompts" / f"{name}.txt").read_text(encoding="utf-8").strip()


def questions(source: Image.Image, edited: Image.Image, instruction: str) -> list[Question]:
    """A question a perspective, in their order; quality is asked of the edited image alone."""
    before, after = Picture(source), Picture(edited)
    pair = (f"Instruction: {instruction}", "Source image:", before, "Edited image:", after)
    shown = dict.fromkeys(PERSPECTIVES, pair) | {"quality": (after,)}
    return [Question(f"{text(name)}\n\n{text('answer')}", shown[name]) for name in PERSPECTIVES]


def repeated(question: Question, unusable: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The question's messages, and after replies that could not be used those, and what was wrong with each."""
    messages = question.messages()
    for reply, fault in unusable:
        messages += [
            {"role": "assistant", "content": reply or "(nothing)"},
            {"role": "user", "content": text("again").format(reason=fault)},
        ]
    return messages
