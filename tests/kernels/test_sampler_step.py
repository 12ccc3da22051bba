import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrc_edit.engine.step_table import sampler_step as loop_step
from mrc_edit.kernels import ops
from mrc_edit.kernels.sampler_step.reference import sampler_step


def by_hand(noise, latents, denoised, fresh_noise, coefficients, denoised_coefficients, input_scale, item, sample):
    """The step in numpy's float64, written value by value from docs/mathematics.md."""
    a, b, c, e = coefficients
    p, q = denoised_coefficients
    new_latents, new_denoised, new_sample = latents.copy(), denoised.copy(), sample.copy()
    for at in np.ndindex(latents.shape):
        new_latents[at] = a * latents[at] + b * noise[at] + c * denoised[at]
        if fresh_noise is not None:
            new_latents[at] += e * fresh_noise[at]
        new_denoised[at] = p * latents[at] + q * noise[at]
    for row, image in enumerate(item):
        new_sample[row, :4] = input_scale * new_latents[image]
    return new_latents, new_denoised, new_sample


def close(actual, expected):
    scale = max(np.abs(expected).max(), 50.0)
    np.testing.assert_allclose(actual, expected, atol=2e-6 * scale, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 6),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    fresh_noise=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_operator_reference_and_loop_compute_the_step(
    step_arguments, in_float64, batch, inputs, height, width, fresh_noise, seed
):
    args = step_arguments(batch, inputs, height, width, fresh_noise, seed)
    expected = by_hand(*in_float64(args))
    for step in (ops.sampler_step, sampler_step):
        tensors = [None if tensor is None else tensor.clone() for tensor in args]
        tensors[-1][:, :4] = torch.nan  # a value that is not written must show
        step(*tensors)
        for actual, truth in zip((tensors[1], tensors[2], tensors[-1]), expected, strict=True):
            close(actual.numpy(), truth)
    latents, denoised = loop_step(*(None if tensor is None else tensor.numpy() for tensor in args[:6]))
    assert latents.dtype == denoised.dtype == np.float32
    close(latents, expected[0])
    close(denoised, expected[1])


@pytest.mark.parametrize("fresh_noise", [True, False])
def test_opcheck(step_arguments, fresh_noise):
    torch.library.opcheck(ops.sampler_step, tuple(step_arguments(1, 2, 4, 4, fresh_noise)))


def test_the_source_half_of_the_sample_is_untouched(step_arguments):
    args = step_arguments(1, 2, 5, 7, True)
    before = args[-1][:, 4:].clone()
    ops.sampler_step(*args)
    assert torch.equal(args[-1][:, 4:], before)


def test_half_precision_noise_is_upcast(step_arguments, in_float64):
    noise, *rest = step_arguments(2, 3, 4, 5, False)
    noise = noise.to(torch.float16)
    latents, *_ = by_hand(*in_float64([noise, *rest]))
    ops.sampler_step(noise, *rest)
    close(rest[0].numpy(), latents)


def test_nan_stays_in_its_image(step_arguments):
    args = step_arguments(2, 2, 4, 4, False)
    args[0][1] = torch.nan
    args[7][:] = torch.arange(2)
    ops.sampler_step(*args)
    for tensor in (args[1], args[2], args[-1]):
        assert tensor[0].isfinite().all()
    assert args[1][1].isnan().all() and args[-1][1, :4].isnan().all()
