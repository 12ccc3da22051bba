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
def step_arguments():
    """Makes the arguments of `sampler_step` in order, random by seed; `noise` and `sample` are of `dtype`."""

    def make(batch, inputs, height, width, fresh_noise, seed=0, dtype=torch.float32):
        random = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=random)

        shape = (batch, 4, height, width)
        latents, denoised = normal(*shape) * 10, normal(*shape)
        return [
            normal(*shape).to(dtype), latents, denoised, normal(*shape) if fresh_noise else None,
            normal(4), normal(2), torch.tensor([0.3]),
            torch.randint(batch, (inputs,), generator=random), normal(inputs, 8, height, width).to(dtype),
        ]  # fmt: skip

    return make


@pytest.fixture(scope="session")
def in_float64():
    """Makes numpy arrays of tensors, in float64 but for whole numbers."""
    return lambda tensors: [
        None if tensor is None else (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        for tensor in tensors
    ]


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
    return lambda actual, expected: ((actual.double() - expected).norm() / expected.norm()).item()
