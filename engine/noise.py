"""Gaussian noise with the very numbers of torch's CPU generator, drawn by numpy.

torch fills a float32 tensor of 16 or more values from MT19937 (seeded with `init_genrand`): the low
24 bits of each output make a uniform value, and Box–Muller turns 16 of them at a time into
normals (torch/aten/src/ATen/native/cpu/DistributionTemplates.h, `normal_fill`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

GROUP = 16  # values a Box–Muller group: 8 radii, 8 angles


def generator(seed: int) -> np.random.RandomState:
    """The state of `torch.Generator("cpu").manual_seed(seed)`; torch uses the low 32 bits too."""
    return np.random.RandomState(seed % 2**32)


def normal(state: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """What `torch.randn(shape, generator=…)` returns: float32, the state advanced as torch does.

    Raises:
        ValueError: fewer than 16 values, which torch draws in another way.
    """
    count = math.prod(shape)
    if count < GROUP:
        raise ValueError(f"shape {shape} has {count} values; torch's sequence is reproduced from {GROUP} on")
    values = uniform(state, count)
    whole = count // GROUP * GROUP
    values[:whole] = box_muller(values[:whole])
    if count % GROUP:  # torch draws the last sixteen anew
        values[-GROUP:] = box_muller(uniform(state, GROUP))
    return values.reshape(shape)


def uniform(state: np.random.RandomState, count: int) -> np.ndarray:
    bits = state.randint(0, 2**32, count, dtype=np.uint32)
    return (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def box_muller(uniforms: np.ndarray) -> np.ndarray:
    first, second = np.moveaxis(uniforms.reshape(-1, 2, GROUP // 2), 1, 0)
    radius = np.sqrt(-2 * np.log(1 - first))
    angle = np.float32(2 * math.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()


TorchGenerator = Any  # torch.Generator; the engine imports no PyTorch
# torch.Generator.get_state(): seed, how many outputs are left, whether it is seeded, index of the next, 624 words, and
# values of the normal distribution that are kept for fewer than 16 at once (torch/aten/src/ATen/CPUGeneratorImpl.cpp)
TORCH_STATE = np.dtype(
    [("seed", "<u8"), ("left", "<i4"), ("seeded", "<i4"), ("next", "<u8"), ("words", "<u8", 624), ("kept", "u1", 40)]
)


def of_torch(torch_generator: TorchGenerator) -> np.random.RandomState:
    """The state of a `torch.Generator` on the CPU, wherever it stands; PyTorch is not imported for it."""
    stored = torch_generator.get_state().numpy().view(TORCH_STATE)[0]
    position = 624 if stored["left"] == 1 else int(stored["next"])
    state = np.random.RandomState()
    state.set_state(("MT19937", stored["words"].astype(np.uint32), position, 0, 0.0))
    return state


def store_torch(state: np.random.RandomState, torch_generator: TorchGenerator) -> None:
    """Advance a `torch.Generator` to `state`."""
    key = state.get_state(legacy=False)["state"]
    stored = torch_generator.get_state()
    fields = stored.numpy().view(TORCH_STATE)
    fields["words"], fields["next"], fields["left"] = key["key"], key["pos"], 625 - key["pos"]
    torch_generator.set_state(stored)


@contextmanager
def drawing(seeds: Sequence[int], generators: Sequence[TorchGenerator | None]) -> Iterator[list[np.random.RandomState]]:
    """The states that edits draw from: of their generators where they have one, else of their seeds.

    Equal generators are one state. They are advanced at the end of the block, unless it fails: then whoever tries it
    again draws the same.
    """
    distinct = {id(one): one for one in generators if one is not None}
    states = {key: of_torch(one) for key, one in distinct.items()}
    yield [generator(seed) if one is None else states[id(one)] for seed, one in zip(seeds, generators, strict=True)]
    for key, one in distinct.items():
        store_torch(states[key], one)
