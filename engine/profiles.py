"""The range of shapes that TensorRT builds a graph for: an optimization profile for each input."""

from ..core.errors import MRCError
from .graphs import DYNAMIC
from .manifest import Artifact, Geometry

Profile = dict[str, dict[str, list[int]]]  # input → "min", "opt" and "max" → shape


def profile(artifact: Artifact, sizes: tuple[int, int, int], scale: int, max_batch: int) -> Profile:
    """Least, best and greatest shape of every input.

    Args:
        artifact: of any runtime; what counts are the dimensions of its inputs.
        sizes: least, best and greatest pixels of a side; `scale`: pixels a latent, along one side.
        max_batch: images a pass.
    """
    least, best, greatest = sizes
    ranges = {
        "batch": (1, 1, max_batch),
        "texts": (1, 3, 4 * max_batch),  # an image has an instruction, a negative prompt and two reward texts
        "rewards": (1, 1, 3 * max_batch),  # one a branch, with reward guidance
        "steps": (1, 30, 1000),
        "inputs": (1, 2, 3 * max_batch),
        "branches": (1, 3, 3 * max_batch),
        "guided": (1, 1, 2 * max_batch),  # guided and unguided, where a tier reuses the delta
        "height": sizes,
        "width": sizes,
        "rows": (least // scale, best // scale, greatest // scale),
        "columns": (least // scale, best // scale, greatest // scale),
    }
    assert ranges.keys() == DYNAMIC.keys()
    return {
        name: {
            bound: [ranges[dim][i] if isinstance(dim, str) else dim for dim in dims]
            for i, bound in enumerate(("min", "opt", "max"))
        }
        for name, (_, *dims) in artifact.inputs.items()
    }


def sides(geometry: Geometry, sizes: tuple[int, int, int] | None, max_batch: int) -> tuple[int, int, int]:
    """Least, best and greatest pixels of a side: the given, or half, once and one and a half times the model's own.

    Raises:
        MRCError: not in that order, no multiples of what the model takes, or a `max_batch` below 1.
    """
    multiple = geometry.multiple
    if sizes is None:
        least, best, greatest = (max(geometry.resolution * part // 2 // multiple, 1) * multiple for part in (1, 2, 3))
    else:
        whole = len(sizes) == 3 and all(type(size) is int for size in sizes)
        least, best, greatest = sizes if whole else (0, 0, 0)
    if not 0 < least <= best <= greatest or any(size % multiple for size in (least, best, greatest)):
        raise MRCError(f"sizes are {sizes}; give least ≤ best ≤ greatest, multiples of {multiple} pixels")
    if type(max_batch) is not int or max_batch < 1:
        raise MRCError(f"max_batch is {max_batch!r}; give a whole number from 1")
    return least, best, greatest
