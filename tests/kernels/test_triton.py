"""The Triton kernels against the references: interpreted on the CPU, compiled where there is a GPU."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from mrc_edit.kernels import ops
from mrc_edit.kernels.group_norm_silu import reference as group_norm_reference
from mrc_edit.kernels.group_norm_silu import triton_kernel as group_norm_triton
from mrc_edit.kernels.guided_step.reference import guided_step as reference_step
from mrc_edit.kernels.guided_step.triton_kernel import guided_step
from mrc_edit.kernels.reward_block import reference as reward_reference
from mrc_edit.kernels.reward_block import triton_kernel as reward_triton

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
    found = reward_triton.reward_block(*args)
    assert found.stride() == args[0].stride()
    assert relative_error(found, reward_reference.reward_block(*wide(args))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "groups", "height", "width", "last", "offset", "silu"),
    [(32, 8, 3, 5, True, True, True), (40, 8, 7, 2, False, False, True), (96, 32, 40, 33, True, True, False)],
)
def test_group_norm_silu(wide, relative_error, channels, groups, height, width, last, offset, silu, dtype, device):
    random = torch.Generator().manual_seed(channels)
    hidden = (2 * torch.randn(2, channels, height, width, generator=random) - 1).to(device, dtype)
    hidden = hidden.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    weight, bias = torch.randn(2, channels, generator=random).to(device, dtype)
    added = torch.randn(2, channels, generator=random).to(device, dtype) if offset else None
    args = (hidden, weight, bias, groups, 1e-5, added, silu)
    found = group_norm_triton.group_norm_silu(*args)
    assert found.stride() == hidden.stride()
    assert relative_error(found, group_norm_reference.group_norm_silu(*wide(args))) <= TOLERANCE[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "batch", "inputs", "side", "fresh"), [(1, 1, 1, 5, False), (6, 2, 4, 18, True)])
def test_guided_step(relative_error, rows, batch, inputs, side, fresh, dtype, device):
    random = torch.Generator().manual_seed(rows)
    shape = (4, side, side)

    def normal(*dims):
        return torch.randn(dims, generator=random)

    noise, sample = normal(rows, *shape).to(dtype), normal(inputs, 8, side, side).to(dtype)
    guidance, latents, data = normal(batch, rows) * 5, normal(batch, *shape) * 10, normal(batch, *shape)
    added = normal(batch, *shape) if fresh else None
    coefficients, to_data, scale = normal(4), normal(2), torch.tensor([0.3])
    item = torch.arange(inputs) % batch
    floats = (noise, guidance, latents, data, added, coefficients, to_data)
    arrays = [None if tensor is None else tensor.double().numpy() for tensor in floats]
    expected = reference_step(*arrays, scale.item(), item.numpy(), sample.double().numpy())
    sample[:, :4] = torch.nan
    tensors = [None if t is None else t.to(device) for t in
               (noise, guidance, latents, data, added, coefficients, to_data, scale, item, sample)]  # fmt: skip
    guided_step(*tensors)
    for found, truth in zip((tensors[2], tensors[3], tensors[-1]), expected, strict=True):
        half = found.dtype != torch.float32
        assert relative_error(found.cpu(), torch.from_numpy(truth)) <= (TOLERANCE[dtype] if half else 1e-5)


def test_nan_of_another_images_branch_is_not_read():
    noise, guidance = torch.zeros(2, 4, 3, 3), torch.eye(2)
    noise[1] = torch.nan
    latents, data, sample = torch.ones(2, 4, 3, 3), torch.zeros(2, 4, 3, 3), torch.zeros(2, 8, 3, 3)
    if torch.cuda.is_available():
        pytest.skip("Triton compiles where there is a GPU")
    guided_step(
        noise, guidance, latents, data, None, torch.ones(4), torch.ones(2), torch.ones(1), torch.arange(2), sample
    )
    assert latents[0].isfinite().all() and latents[1].isnan().all()
    assert np.isfinite(sample[0].numpy()).all()


@on_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_cuda_tensor_goes_to_triton(wide, relative_error, reward_arguments):
    hidden, *rest = reward_arguments(1, 320, 16, 16, dtype=torch.float16, last=True, device="cuda")
    assert ops.chosen(hidden, packed=False) == "triton_kernel"
    found = ops.reward_block(hidden, *rest)
    assert relative_error(found, reward_reference.reward_block(*wide((hidden, *rest)))) <= 2e-3
