"""A judge's reward of one edit."""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

# Of one perspective; None where no reply was usable
Score = int | None


@dataclass(frozen=True)
class Reward:
    """A judged edit; every tuple is in the order of `mrc_edit.core.reward.PERSPECTIVES`.

    A perspective without a usable reply has None as score, verdict and text, and the reason in `failures`.
    """

    scores: tuple[Score, Score, Score]  # 0–5
    verdicts: tuple[bool | None, bool | None, bool | None]  # is the edit right in this perspective?
    texts: tuple[str | None, str | None, str | None]  # what went wrong, "None" if nothing did
    failures: tuple[str | None, str | None, str | None] = (None, None, None)
    tokens: int = 0  # of all requests and replies, repeats included
    replies: tuple[str, ...] = ()  # the last raw reply of every perspective

    @property
    def usable(self) -> bool:
        """Whether all three perspectives have a score."""
        return all(score is not None for score in self.scores)


class Judge(Protocol):
    """Anything that scores edits."""

    def score(self, source: Image.Image, edited: Image.Image, instruction: str) -> Reward:
        """Judge `edited` as the result of `instruction` on `source`, both RGB."""
