"""The miniature world as a data set: triplet number i of a seed is always the same."""

import numpy as np
from PIL import Image

from ..data.triplet import Triplet
from .edits import KINDS, Edit, imperfect, random_edit
from .oracle import score
from .scene import render


def to_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))


class MiniatureTriplets:
    """`length` imperfect triplets with the oracle's rewards; see `data.triplet.Triplets`."""

    def __init__(self, photographs: list[np.ndarray], length: int, seed: int = 0) -> None:
        self.photographs, self.length, self.seed = photographs, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Triplet:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        edit = random_edit(rng, self.photographs)
        source = to_image(render(edit.source, self.photographs))
        edited = to_image(imperfect(rng, edit, self.photographs))
        scores, text = score(edit, np.asarray(edited), self.photographs)
        return Triplet(f"miniature-{self.seed}-{index}", source, edited, edit.instruction, scores, text)


def held_out(photographs: list[np.ndarray], count: int) -> list[Edit]:
    """Edits of scenes that no training seed draws, the seven kinds in turn."""
    return [
        random_edit(np.random.default_rng([2**31, index]), photographs, KINDS[index % len(KINDS)])
        for index in range(count)
    ]
