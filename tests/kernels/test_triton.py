"""The Triton kernels against the references: interpreted on the CPU, compiled where there is a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from mrc_edit.kernels import ops
from mrc_edit.kernels.group_norm_silu import reference as group_norm_reference
from mrc_edit.kernels.group_norm_silu import triton_kernel as group_norm_triton
from mrc_edit.kernels.reward_block import reference as reward_reference
from mrc_edit.kernels.reward_block import triton_kernel as reward_triton
from mrc_edit.kernels.sampler_step import reference as sampler_reference
from mrc_edit.kernels.sampler_step import triton_kernel as sampler_triton

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
on_gpu = pytest.mark.gpu
DTYPES = tuple(TOLERANCE)
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


@pytest.fixture(autouse=True)
def machine(request):
    device = getattr(request.node, "callspec", None) and request.node.callspec.params.get("device")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("Triton compiles where there is a GPU")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "height", "width", "last"), [(32, 3, 5, False), (96, 5, 4, True)])
def test_reward_block(wide, relative_error, reward_arguments, channels, height, width, last, dtype, device):
    args = reward_arguments(2, channels, height, width, dtype=dtype, last=last, device=device)
    actual = reward_triton.reward_block(*args)
    assert actual.stride() == args[0].stride()
    assert relative_error(actual, reward_reference.reward_block(*wide(args))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "groups", "height", "width", "last", "offset", "silu"),
    [
        (32, 8, 3, 5, True, True, True),
        (40, 8, 7, 2, False, False, True),
        (96, 32, 40, 33, True, True, False),  # large maps: three kernels
        (40, 8, 64, 65, True, True, True),  # the last part is smaller, and has one position in its last tile
        (40, 8, 33, 40, False, True, True),
    ],
)
def test_group_norm_silu(wide, relative_error, channels, groups, height, width, last, offset, silu, dtype, device):
    random = torch.Generator().manual_seed(channels)
    hidden = (2 * torch.randn(2, channels, height, width, generator=random) - 1).to(device, dtype)
    hidden = hidden.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    weight, bias = torch.randn(2, channels, generator=random).to(device, dtype)
    added = torch.randn(2, channels, generator=random).to(device, dtype) if offset else None
    args = (hidden, weight, bias, groups, 1e-5, added, silu)
    actual = group_norm_triton.group_norm_silu(*args)
    assert actual.stride() == hidden.stride()
    assert relative_error(actual, group_norm_reference.group_norm_silu(*wide(args))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "inputs", "side", "fresh_noise"), [(1, 1, 5, False), (2, 4, 18, True)])
def test_sampler_step(relative_error, step_arguments, batch, inputs, side, fresh_noise, dtype, device):
    args = step_arguments(batch, inputs, side, side, fresh_noise, dtype=dtype)
    expected = wide_step(args)
    args[-1][:, :4] = torch.nan
    on_device = [None if tensor is None else tensor.to(device) for tensor in args]
    sampler_triton.sampler_step(*on_device)
    for i, truth in expected.items():
        half = on_device[i].dtype != torch.float32
        assert relative_error(on_device[i].cpu(), truth) <= (TOLERANCE[dtype] if half else 1e-5)


def wide_step(args):
    """`latents`, `denoised` and `sample` after the reference's step in float64, by their places in `args`."""
    doubles = [tensor.double() if tensor is not None and tensor.is_floating_point() else tensor for tensor in args]
    doubles[1:3] = [tensor.clone() for tensor in doubles[1:3]]
    sampler_reference.sampler_step(*doubles)
    return {i: doubles[i] for i in (1, 2, 8)}


def test_nan_stays_in_its_image(step_arguments):
    if torch.cuda.is_available():
        pytest.skip("Triton compiles where there is a GPU")
    args = step_arguments(2, 2, 3, 3, False)
    args[0][1] = torch.nan
    args[7][:] = torch.arange(2)
    sampler_triton.sampler_step(*args)
    assert args[1][0].isfinite().all() and args[1][1].isnan().all()
    assert args[-1][0].isfinite().all()


@on_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_cuda_tensor_goes_to_triton(wide, relative_error, reward_arguments):
    hidden, *rest = reward_arguments(1, 320, 16, 16, dtype=torch.float16, last=True, device="cuda")
    assert ops.chosen(hidden, packed=False) == "triton_kernel"
    actual = ops.reward_block(hidden, *rest)
    assert relative_error(actual, reward_reference.reward_block(*wide((hidden, *rest)))) <= 2e-3
