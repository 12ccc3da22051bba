import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrc_edit.kernels import ops
from mrc_edit.kernels.group_norm_silu import native
from mrc_edit.kernels.group_norm_silu.reference import group_norm_silu

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def arguments(count, channels, groups, height, width, offset, silu, seed=0, dtype=torch.float32, last=False):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    hidden = (2 * normal(count, channels, height, width) - 1).to(dtype)
    if last:
        hidden = hidden.contiguous(memory_format=torch.channels_last)
    added = normal(count, channels) if offset else None
    return hidden, normal(channels), normal(channels), groups, 1e-5, added, silu


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 3),
    shape=st.sampled_from(((1, 1), (6, 3), (32, 32), (40, 8), (96, 32))),  # channels, groups
    height=st.integers(2, 33),
    width=st.integers(1, 33),
    offset=st.booleans(),
    silu=st.booleans(),
    dtype=st.sampled_from(tuple(TOLERANCE)),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_native_equals_reference(wide, relative_error, count, shape, height, width, offset, silu, dtype, last, seed):
    args = arguments(count, *shape, height, width, offset, silu, seed, dtype, last)
    actual = native.group_norm_silu(*args)
    assert actual.dtype == dtype and actual.shape == args[0].shape
    assert relative_error(actual, group_norm_silu(*wide(args))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("last", [False, True])
def test_a_mean_far_from_zero_keeps_its_digits(wide, relative_error, last):
    hidden, *rest = arguments(1, 64, 32, 40, 40, False, False, last=last)
    args = (hidden * 0.1 + 50, *rest)  # what float32 can do: 50 / 0.2 roundings
    assert relative_error(ops.group_norm_silu(*args), group_norm_silu(*wide(args))) <= 5e-5


@pytest.mark.parametrize("last", [False, True])
def test_many_chunks_and_threads_keep_the_layout(wide, relative_error, last):
    args = arguments(2, 320, 32, 40, 33, True, True, last=last)
    actual = ops.group_norm_silu(*args)
    assert relative_error(actual, group_norm_silu(*wide(args))) <= 1e-5
    assert actual.stride() == args[0].stride()


def test_extreme_values(relative_error):
    hidden = torch.tensor([-100.0, -90.0, -88.0, -20.0, 0.0, 20.0, 88.0, 100.0]).reshape(1, 8, 1, 1)
    actual = ops.group_norm_silu(hidden, torch.ones(8), torch.zeros(8), 1, 1e-5, None, True)
    expected = group_norm_silu(hidden.double(), torch.ones(8).double(), torch.zeros(8).double(), 1, 1e-5, None, True)
    assert relative_error(actual, expected) <= 1e-6
    weight = torch.full((8,), 1e4)  # normed values of some ten thousands: SiLU is 0 or the value
    actual = ops.group_norm_silu(hidden, weight, torch.zeros(8), 1, 1e-5, None, True)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual[0, :4].flatten(), torch.zeros(4), atol=1e-30, rtol=0)


def test_nan_stays_in_its_group():
    hidden, *rest = arguments(1, 32, 8, 3, 3, False, True)
    hidden[0, 5, 1, 1] = torch.nan
    actual = ops.group_norm_silu(hidden, *rest)
    assert actual[0, 4:8].isnan().all() and actual[0, :4].isfinite().all() and actual[0, 8:].isfinite().all()


@pytest.mark.parametrize("offset", [False, True])
def test_gradients_are_the_references(offset):
    gradients = []
    for function in (ops.group_norm_silu, group_norm_silu):
        args = [value.requires_grad_() if isinstance(value, torch.Tensor) else value
                for value in arguments(2, 32, 8, 4, 5, offset, True)]  # fmt: skip
        function(*args).square().mean().backward()
        gradients.append([value.grad for value in args if isinstance(value, torch.Tensor)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last):
    hidden, *rest = arguments(2, 32, 8, 4, 5, True, True, last=last)
    torch.library.opcheck(ops.group_norm_silu, (hidden.requires_grad_(), *rest))
