import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrc_edit.kernels import ops
from mrc_edit.kernels.guided_step import guided_step
from mrc_edit.kernels.guided_step.reference import guided_step as reference_step


def arguments(rows, batch, inputs, height, width, fresh, seed=0):
    random = np.random.RandomState(seed)
    shape = (4, height, width)

    def normal(*dims):
        return random.standard_normal(dims).astype(np.float32)

    return {
        "noise": normal(rows, *shape),
        "guidance": normal(batch, rows) * 5,
        "latents": normal(batch, *shape) * 10,
        "data": normal(batch, *shape),
        "fresh": normal(batch, *shape) if fresh else None,
        "coefficients": random.standard_normal(4),
        "data_coefficients": random.standard_normal(2),
        "input_scale": 0.3,
        "item": random.randint(0, batch, inputs),
        "sample": normal(inputs, 8, height, width),
    }


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    batch=st.integers(1, 4),
    inputs=st.integers(1, 8),
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    fresh=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_native_equals_reference(rows, batch, inputs, height, width, fresh, seed):
    args = arguments(rows, batch, inputs, height, width, fresh, seed)
    wide = {name: value.astype(np.float64) if isinstance(value, np.ndarray) and name != "item" else value
            for name, value in args.items()}  # fmt: skip
    latents, data, sample = reference_step(**wide)
    args["sample"][:, :4] = np.nan  # what the kernel does not write must show
    guided_step(**args)
    for found, expected in ((args["latents"], latents), (args["data"], data), (args["sample"], sample)):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=2e-6 * max(scale, 50.0), rtol=0)


def tensors(args):
    scale = torch.tensor([args["input_scale"]])
    return [torch.from_numpy(np.ascontiguousarray(value)).to(torch.int64 if name == "item" else torch.float32)
            if isinstance(value, np.ndarray) else scale if name == "input_scale" else value
            for name, value in args.items()]  # fmt: skip


@pytest.mark.parametrize("fresh", [True, False])
def test_the_operator_is_the_kernel_and_its_reference(fresh):
    args = arguments(3, 2, 4, 5, 7, fresh)
    native, by_reference = ([None if t is None else t.clone() for t in tensors(args)] for _ in range(2))
    ops.guided_step(*native)
    with ops.reference_kernels():
        ops.guided_step(*by_reference)
    guided_step(**args)
    for i, name in ((2, "latents"), (3, "data"), (9, "sample")):
        np.testing.assert_array_equal(native[i].numpy(), args[name])
        torch.testing.assert_close(native[i], by_reference[i], atol=1e-4, rtol=1e-5)


def test_opcheck():
    torch.library.opcheck(ops.guided_step, tuple(tensors(arguments(3, 1, 2, 4, 4, True))))


def test_source_half_of_the_sample_is_untouched():
    args = arguments(2, 1, 2, 5, 7, True)
    before = args["sample"][:, 4:].copy()
    guided_step(**args)
    np.testing.assert_array_equal(args["sample"][:, 4:], before)


def test_nan_in_another_images_branch_does_not_spread():
    args = arguments(2, 2, 2, 4, 4, False)
    args["guidance"] = np.eye(2, dtype=np.float32)
    args["noise"][1] = np.nan
    guided_step(**args)
    assert np.isfinite(args["latents"][0]).all()
    assert np.isnan(args["latents"][1]).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise", np.zeros((3, 4, 4, 4))),  # float64
        ("guidance", np.zeros((1, 4), np.float32)),  # a row too many
        ("latents", np.zeros((1, 4, 4, 4), np.float32)[..., ::-1]),  # not contiguous
        ("data", np.zeros((2, 4, 4, 4), np.float32)),
        ("sample", np.zeros((2, 4, 4, 4), np.float32)),
        ("item", np.array([0, 1])),  # there is one image
        ("item", np.array([0])),
    ],
)
def test_unfit_arrays_are_refused(name, value):
    args = arguments(3, 1, 2, 4, 4, True) | {name: value}
    with pytest.raises(ValueError, match=name):
        guided_step(**args)
