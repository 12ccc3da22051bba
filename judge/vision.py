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
ASKS = 3  # attempts to get a usable reply to a question


@dataclass(frozen=True)
class Outcome:
    """The result of one question: an answer, or the reason why there is none."""

    answer: Answer | None
    failure: str | None
    tokens: int
    reply: str


class VisionJudge:
    """See `Judge`. Every reply is stored in `folder` as it arrives; a question with a stored reply is not sent again.

    A perspective without a usable reply is a failure in the reward. Unusable replies are stored like others;
    a question without any reply is sent again by the next run.
    """

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self.endpoint, self.folder = endpoint, folder
        self.asking: dict[str, threading.Lock] = {}  # equal questions at the same time are sent once

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
        """Ask until a reply is usable, at most `ASKS` times."""
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
        """The stored reply, or else the model's, which is then stored; `unusable` are its earlier replies."""
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
    """A tuple whose length the type checker knows."""
    first, second, third = values
    return first, second, third
