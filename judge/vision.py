"""A vision-language model as judge."""

import hashlib
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..core.errors import MRCError
from . import cache
from .endpoint import Endpoint, NoReply
from .questions import Question, questions, repeated
from .reply import Answer, Reply, read_answer
from .reward import Reward

T = TypeVar("T")
ASKS = 3  # replies to one question, until one can be used


@dataclass(frozen=True)
class Outcome:
    """How one question ended."""

    answer: Answer | None
    failure: str | None
    tokens: int
    reply: str


class VisionJudge:
    """See `Judge`. Every reply is stored in `folder` as it arrives, and a stored one is not asked for again.

    A perspective whose replies stay unusable, or that gets none, is a failure in the reward. Unusable replies
    are stored like others; where there was no reply the next run asks again.
    """

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self.endpoint, self.folder = endpoint, folder
        self.asking: dict[str, threading.Lock] = {}  # equal questions at the same time are asked once

    def score(self, source: Image.Image, edited: Image.Image, instruction: str) -> Reward:
        outcomes = [self.outcome(question) for question in questions(source, edited, instruction)]
        answers = [outcome.answer for outcome in outcomes]
        return Reward(
            scores=three(None if answer is None else answer.score for answer in answers),
            verdicts=three(None if answer is None else answer.verdict for answer in answers),
            texts=three(None if answer is None else answer.text for answer in answers),
            failures=three(outcome.failure for outcome in outcomes),
            tokens=sum(outcome.tokens for outcome in outcomes),
            replies=tuple(outcome.reply for outcome in outcomes),
        )

    def outcome(self, question: Question) -> Outcome:
        """Ask until a reply can be used."""
        unusable: list[tuple[str, str]] = []  # replies, and what was wrong with them
        tokens = 0
        while len(unusable) < ASKS:
            try:
                reply = self.reply(question, unusable)
            except NoReply as error:
                return Outcome(None, f"no reply: {error}", tokens, unusable[-1][0] if unusable else "")
            tokens += reply.tokens or 0
            try:
                return Outcome(read_answer(reply.text), None, tokens, reply.text)
            except MRCError as error:
                unusable.append((reply.text, str(error)))
        reply_text, fault = unusable[-1]
        return Outcome(None, f"unusable: {fault}", tokens, reply_text)

    def reply(self, question: Question, unusable: list[tuple[str, str]]) -> Reply:
        """The stored reply, or the model's, stored; `unusable` are those that it gave before."""
        asked = [question.key, self.endpoint.model, *(text for text, _ in unusable)]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        with self.asking.setdefault(key, threading.Lock()):
            reply = cache.load(self.folder, key)
            if reply is None:
                reply = self.endpoint.ask(repeated(question, unusable))
                cache.store(self.folder, key, self.endpoint.model, reply)
                self.endpoint.spending.reply(reply.tokens)
        return reply


def three(values: Iterable[T]) -> tuple[T, T, T]:
    first, second, third = values
    return first, second, third
