"""The miniature world as a data set: triplet number i of a seed is always the same.

    python -m mrc_edit.train.miniature.triplets OUT --format parquet --count 1000

writes it for other tools; `mrc-train --data miniature:1000` draws it while it trains.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.errors import MRCError, run_command
from ...core.kinds import KINDS
from ..data.triplet import Triplet
from ..data.writers import FORMATS, write_triplets
from .edits import Edit, imperfect, random_edit
from .oracle import score
from .photographs import load_photographs
from .scene import render


def to_image(picture: np.ndarray) -> Image.Image:
    """An image of pixels in 0…255, rounded."""
    return Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))


class MiniatureTriplets:
    """`length` imperfect triplets with the oracle's rewards; see `data.triplet.Triplets`."""

    def __init__(self, photographs: list[np.ndarray], length: int, seed: int = 0) -> None:
        self.photographs, self.length, self.seed = photographs, length, seed

    def __len__(self) -> int:
        return self.length

    def edit(self, index: int) -> tuple[Edit, np.random.Generator]:
        """The edit of a triplet, and the generator from which its faults are drawn next."""
        rng = np.random.default_rng([self.seed, index])
        return random_edit(rng, self.photographs), rng

    def __getitem__(self, index: int) -> Triplet:
        if not 0 <= index < self.length:
            raise IndexError(index)
        edit, rng = self.edit(index)
        source = to_image(render(edit.source, self.photographs))
        edited = to_image(imperfect(rng, edit, self.photographs))
        scores, text = score(edit, np.asarray(edited), self.photographs)
        return Triplet(f"miniature-{self.seed}-{index}", source, edited, edit.instruction, scores, text)


def held_out(photographs: list[np.ndarray], count: int) -> list[Edit]:
    """Edits of scenes outside every training set, the seven kinds in turn."""
    return [
        random_edit(np.random.default_rng([2**31, index]), photographs, KINDS[index % len(KINDS)])
        for index in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mrc_edit.train.miniature.triplets",
        description="Write triplets of the miniature world with rewards.",
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--format", choices=list(FORMATS), default="folders", help="format of the files (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=1000, help="number of triplets (default: %(default)s)")
    parser.add_argument("--photographs", type=Path, help="folder of photographs besides scikit-image's (default: none)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the triplets (default: %(default)s)")
    args = parser.parse_args()

    def run() -> None:
        if args.seed < 0:
            raise MRCError(f"--seed is {args.seed}; give a number from 0 up")
        if args.count < 1:
            raise MRCError(f"--count is {args.count}; give a number from 1 up")
        triplets = MiniatureTriplets(load_photographs(args.photographs), args.count, args.seed)
        write_triplets((triplets[i] for i in range(args.count)), args.out, args.format, args.count)

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
