import pytest
import torch

from mrc_edit.kernels.reward_block.fold import HEADS
from mrc_edit.kernels.reward_block.reference import RewardWeights

MATRICES = ("proj_in", "inner", "outer", "proj_out")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """`torch.empty` gives NaN, so that a value no kernel wrote shows."""
    empty_like = torch.empty_like

    def poisoned_empty_like(*args, **kwargs):
        tensor = empty_like(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and tensor.device.type != "meta" else tensor

    monkeypatch.setattr(torch, "empty_like", poisoned_empty_like)


@pytest.fixture(scope="session")
def reward_arguments():
    """Makes the arguments of `reward_block`, random by seed and rounded to `dtype`: a kernel answers for its
    arithmetic, not for its inputs."""

    def make(count, channels, height, width, seed=0, dtype=torch.float32, last=False, device="cpu"):
        random = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=random)

        hidden = 3 * normal(count, channels, height, width) + 1
        folded = (
            normal(count, HEADS, channels) / channels**0.5,
            normal(count, HEADS, 1),
            normal(count, channels, 1),
            normal(count, channels, HEADS),
        )
        weights = [
            normal(channels, channels) / channels**0.5
            if name in MATRICES
            else 0.3 * normal(channels) + ("bias" not in name)
            for name in RewardWeights._fields
        ]
        hidden = hidden.to(device, dtype)
        hidden = hidden.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        folded = [tensor.to(device, dtype) for tensor in folded]
        return hidden, *folded, [weight.to(device, dtype) for weight in weights], 8

    return make


@pytest.fixture(scope="session")
def wide():
    """Makes every tensor float64, in lists too."""

    def widen(value):
        if isinstance(value, (list, tuple)):
            return [widen(one) for one in value]
        return value.double() if isinstance(value, torch.Tensor) else value

    return widen


@pytest.fixture(scope="session")
def relative_error():
    return lambda found, expected: ((found.double() - expected).norm() / expected.norm()).item()
