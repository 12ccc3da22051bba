import ctypes
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrc_edit.kernels import ops
from mrc_edit.kernels.feature_maps import FeatureMaps
from mrc_edit.kernels.native import library
from mrc_edit.kernels.reward_block import native
from mrc_edit.kernels.reward_block.reference import reward_block
from mrc_edit.model.rewards import RewardConditioning

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 3),
    channels=st.sampled_from((32, 64, 96)),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    dtype=st.sampled_from(tuple(TOLERANCE)),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_native_equals_reference(
    wide, relative_error, reward_arguments, count, channels, height, width, dtype, last, seed
):
    args = reward_arguments(count, channels, height, width, seed, dtype, last)
    actual = native.reward_block(*args)
    assert actual.dtype == dtype
    assert relative_error(actual, reward_block(*wide(args))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("last", [False, True])
def test_released_width(wide, relative_error, reward_arguments, last):
    args = reward_arguments(2, 320, 13, 11, last=last)
    actual = ops.reward_block(*args)
    assert relative_error(actual, reward_block(*wide(args))) <= 1e-5
    assert actual.stride() == args[0].stride()


def test_the_folded_block_is_the_models_own_layer():
    class Layers(RewardConditioning, torch.nn.Module):
        pass

    torch.manual_seed(0)
    layers = Layers()
    layers.build_rewards(64, 48, 16, ())
    layers.eval().double()
    tokens, hidden = torch.randn(3, 2, 64).double(), torch.randn(3, 64, 5, 7).double()
    actual = reward_block(hidden, *layers.folded_attention(tokens), layers.reward_weights(), 16)
    torch.testing.assert_close(actual, layers.reward_layer(hidden, tokens), rtol=1e-10, atol=1e-10)


def test_positions_of_an_image_do_not_depend_on_the_batch(reward_arguments):
    hidden, *folded, weights, groups = reward_arguments(3, 64, 9, 9)
    together = ops.reward_block(hidden, *folded, weights, groups)
    alone = ops.reward_block(hidden[1:2], *(tensor[1:2] for tensor in folded), weights, groups)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)


def test_nan_stays_in_its_image(reward_arguments):
    hidden, *rest = reward_arguments(2, 32, 4, 4)
    hidden[0, 3, 1, 1] = torch.nan
    actual = ops.reward_block(hidden, *rest)
    assert actual[0].isnan().all() and actual[1].isfinite().all()


def test_gradients_are_the_references(reward_arguments):
    def leaves(value):
        if isinstance(value, list):
            return [leaves(one) for one in value]
        return value.clone().requires_grad_() if isinstance(value, torch.Tensor) else value

    gradients = []
    for function in (ops.reward_block, reward_block):
        hidden, *folded, weights, groups = map(leaves, reward_arguments(2, 32, 3, 5))
        function(hidden, *folded, weights, groups).square().mean().backward()
        gradients.append([tensor.grad for tensor in (hidden, *folded, *weights)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_opcheck(reward_arguments):
    hidden, *folded, weights, groups = reward_arguments(2, 32, 3, 5)
    torch.library.opcheck(ops.reward_block, (hidden.requires_grad_(), *folded, weights, groups))
    last = hidden.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(ops.reward_block, (last, *folded, weights, groups))


def test_autocast_decides_the_type(wide, relative_error, reward_arguments):
    args = reward_arguments(1, 32, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        actual = ops.reward_block(*args)
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, reward_block(*wide(args))) <= 1e-2


def test_it_is_traced_whole(reward_arguments):
    class Block(torch.nn.Module):
        def forward(self, hidden, gate, gate_bias, base, update, weights):
            return ops.reward_block(hidden, gate, gate_bias, base, update, weights, 8) * 2

    *args, _ = reward_arguments(1, 32, 4, 4)
    exported = torch.export.export(Block(), tuple(args))
    assert any(node.target is torch.ops.mrc.reward_block.default for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(*args), ops.reward_block(*args, 8) * 2)


def test_what_no_kernel_takes_goes_to_the_reference(wide, relative_error, reward_arguments):
    hidden, *folded, weights, groups = reward_arguments(1, 40, 4, 4)  # 40 is no multiple of 32
    assert relative_error(
        ops.reward_block(hidden, *folded, weights, groups),
        reward_block(*wide((hidden, *folded, weights, groups))),
    ) <= 1e-5  # fmt: skip
    double = wide(reward_arguments(1, 32, 4, 4))
    torch.testing.assert_close(ops.reward_block(*double), reward_block(*double))


def test_the_switch_forces_the_reference(reward_arguments, monkeypatch):
    def fail(*args):
        raise AssertionError("the native kernel was called")

    monkeypatch.setattr(native, "reward_block", fail)
    args = reward_arguments(1, 32, 4, 4)
    with ops.reference_kernels():
        ops.reward_block(*args)
    with pytest.raises(AssertionError, match="native kernel"):
        ops.reward_block(*args)


def test_sizes_that_do_not_fit_are_refused_by_the_library(reward_arguments):
    hidden, *_ = reward_arguments(1, 32, 2, 2)
    data = ctypes.c_void_p(hidden.data_ptr())

    def call(**changed):
        sizes = {"count": 1, "channels": 32, "positions": 4, "groups": 8, "threads": 1, "type": 0} | changed
        pointers = {name: hidden.data_ptr() for name in ("input", "output", "scale", "shift")}
        maps = FeatureMaps(**(pointers | sizes), epsilon=1e-6)
        return library().mrc_reward_block(ctypes.byref(maps), data, *[data] * 4)

    for changed in ({"channels": 40}, {"groups": 5}, {"positions": 0}, {"threads": 0}, {"type": 3}):
        assert call(**changed) == 1, changed
    assert call(input=None) == 2


@pytest.mark.parametrize(
    ("channels", "dtype", "is_cuda", "takes"),
    [
        (320, torch.float32, False, True),
        (1280, torch.float32, False, False),
        (40, torch.float32, False, False),
        (320, torch.float16, True, True),
        (320, torch.float32, True, False),
        (640, torch.bfloat16, True, False),  # of a reward layer after a deeper block
    ],
)
def test_which_maps_the_kernels_compute(channels, dtype, is_cuda, takes):
    hidden = SimpleNamespace(shape=(1, channels, 8, 8), dtype=dtype, is_cuda=is_cuda)
    assert ops.takes_rewards(hidden) is takes
