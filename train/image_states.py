"""What SmartEdit's frozen language model and CLIP give for the samples of a cache, computed once: a folder of parts.

    00000000.safetensors, 00000256.safetensors, …   of 256 samples each:
        states [n, K, W] float16     of the image tokens
        features [n, N, M] float16   of CLIP

Each part appears whole. A run that was stopped goes on with the part after the last. K = 32 image tokens.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from ..core.errors import MRCError, reason
from ..core.files import replaced_file
from .data import Triplets
from .data.batches import fit_pair

PART = 256  # samples
NAMES = ("states", "features")
NEXT = "next"  # in a part's metadata: the triplet after its last

Encode = Callable[[Image.Image, str], tuple[Tensor, Tensor]]  # picture, instruction → states [K, W], features [N, M]


def is_whole(folder: Path, count: int) -> bool:
    """Whether all parts for `count` samples are there; the last is written last."""
    return part(folder, (count - 1) // PART * PART).is_file()


@torch.no_grad()
def build_image_states(encode: Encode, triplets: Triplets, ids: list[str], folder: Path, size: int) -> None:
    """Write the parts that are missing; the caller holds the folder's lock.

    Args:
        ids: of the cache's samples, which are the readable triplets in order.
        size: pixels of a side of the cache's pictures.

    Raises:
        MRCError: a triplet is not the cache's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = 0
    with tqdm(total=len(ids), desc="cache image states", unit="sample", disable=None) as progress:
        for first in range(0, len(ids), PART):
            path, wanted = part(folder, first), ids[first : first + PART]
            if path.is_file():
                index = next_triplet(path)
            else:
                results, index = encode_part(encode, triplets, index, wanted, size, progress)
                with replaced_file(path) as partial:
                    safetensors.torch.save_file(results, partial, {NEXT: str(index)})
            progress.n = first + len(wanted)
            progress.refresh()


def encode_part(
    encode: Encode, triplets: Triplets, index: int, wanted: list[str], size: int, progress: tqdm
) -> tuple[dict[str, Tensor], int]:
    """States and features of the next samples, and the number of the triplet after them."""
    states, features = [], []
    samples = readable(triplets, index, size)
    for name in wanted:
        index, found, picture, instruction = next(samples, (len(triplets), "the end", None, ""))
        if found != name or picture is None:
            raise MRCError(f"the data has {found} where the cache has {name}; remove the cache, or give its data")
        state, feature = encode(picture, instruction)
        states.append(state.half().cpu())
        features.append(feature.half().cpu())
        progress.update()
    return dict(zip(NAMES, (torch.stack(states), torch.stack(features)), strict=True)), index


def readable(triplets: Triplets, index: int, size: int) -> Iterator[tuple[int, str, Image.Image, str]]:
    """From triplet `index` on: the next number, id, the source picture as the cache has it, and the instruction."""
    for number in range(index, len(triplets)):
        try:
            triplet = triplets[number]
        except MRCError:  # the cache left it out, and named it
            continue
        pixels, _ = fit_pair(triplet.source, triplet.edited, size, flip=False, crop=(0.5, 0.5))
        picture = Image.fromarray(np.rint((pixels.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))
        yield number + 1, triplet.id, picture, triplet.instruction


def part(folder: Path, first: int) -> Path:
    return folder / f"{first:08d}.safetensors"


def next_triplet(path: Path) -> int:
    with opened(path) as file:
        return int(file.metadata()[NEXT])


def opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise MRCError(f"{path} cannot be read ({reason(error)}); remove it, the next run builds it again") from None


class ImageStates:
    """The folder that `build_image_states` wrote, looked up by row of the cache.

    Raises:
        MRCError: a part that is missing or damaged.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        for first in range(0, count, PART):
            with opened(part(folder, first)) as file:
                lengths = {name: file.get_slice(name).get_shape()[:1] for name in sorted(file.keys())}
            if lengths != {name: [min(PART, count - first)] for name in NAMES}:
                raise MRCError(f"{part(folder, first)} is damaged; remove it, the next run builds it again")

    def __call__(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """States `[B, K, W]` and features `[B, N, M]`, float32."""
        found: list[tuple[Tensor, ...]] = []
        for row in rows:
            with opened(part(self.folder, int(row) // PART * PART)) as file:
                found.append(tuple(file.get_slice(name)[int(row) % PART] for name in NAMES))
        states, features = (torch.stack(tensors).float() for tensors in zip(*found, strict=True))
        if not (torch.isfinite(states).all() and torch.isfinite(features).all()):
            raise MRCError(f"{self.folder} holds values that are not finite; remove it, the next run builds it again")
        return states, features
