"""The range of shapes that TensorRT builds a graph for: an optimization profile for each input."""

from .graphs import DYNAMIC
from .manifest import Artifact

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
        "texts": (1, 3, 4 * max_batch),  # instruction, negative prompt and two reward texts an image
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
