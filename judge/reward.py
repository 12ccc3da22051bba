"""What a judge says of one edit."""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

# Of one perspective; None stands for a reply that stayed unusable
Score = int | None


@dataclass(frozen=True)
class Reward:
    """A judged edit; every tuple is in the order of `mrc_edit.core.reward.PERSPECTIVES`.

    Where a perspective's reply stayed unusable its score, verdict and text are None and `failures` says why.
    """

    scores: tuple[Score, Score, Score]  # 0–5
    verdicts: tuple[bool | None, bool | None, bool | None]  # is the edit right in this perspective?
    texts: tuple[str | None, str | None, str | None]  # what went wrong, "None" if nothing did
    failures: tuple[str | None, str | None, str | None] = (None, None, None)
    tokens: int = 0  # asked for and answered, all three requests and their repeats
    replies: tuple[str, ...] = ()  # raw, the last of every perspective

    @property
    def usable(self) -> bool:
        """Whether all three perspectives were judged."""
        return all(score is not None for score in self.scores)


class Judge(Protocol):
    """Anything that scores edits."""

    def score(self, source: Image.Image, edited: Image.Image, instruction: str) -> Reward:
        """Judge `edited` as the result of `instruction` on `source`, both RGB."""
