"""The exact oracle as a judge: it gets the edits beforehand and looks up the scene of each source picture."""

import hashlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from ...core.errors import MRCError
from ...judge import Reward
from .edits import Edit
from .oracle import PASS, score
from .scene import SIZE, render
from .triplets import to_image


class OracleJudge:
    """See `Judge`; scores edits of the sources and instructions of `edits`, 128×128."""

    def __init__(self, edits: Iterable[Edit], photographs: list[np.ndarray]) -> None:
        self.photographs = photographs
        self.edits = {key(to_image(render(edit.source, photographs)), edit.instruction): edit for edit in edits}

    def score(self, source: Image.Image, edited: Image.Image, instruction: str) -> Reward:
        """See `Judge.score`.

        Raises:
            MRCError: no scene with that source and instruction, or an edited picture of another size.
        """
        edit = self.edits.get(key(source, instruction))
        if edit is None:
            raise MRCError(
                f"the oracle knows no scene for {instruction!r} on this picture; it judges miniature data alone"
            )
        if edited.size != (SIZE, SIZE):
            raise MRCError(f"the edited picture is {edited.size}; the oracle judges {SIZE}×{SIZE}")
        scores, text = score(edit, np.asarray(edited.convert("RGB")), self.photographs)
        following, preserving, quality = text.split("; ")
        passed = (scores[0] >= PASS, scores[1] >= PASS, scores[2] >= PASS)
        return Reward(scores, passed, (following, preserving, quality))


def key(source: Image.Image, instruction: str) -> str:
    return hashlib.sha256(source.convert("RGB").tobytes() + instruction.encode()).hexdigest()
