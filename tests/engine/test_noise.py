import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrc_edit.engine.noise import generator, normal

SHAPES = st.lists(
    st.tuples(st.integers(1, 3), st.just(4), st.integers(4, 24), st.integers(1, 24)), min_size=1, max_size=3
)


@settings(max_examples=100, deadline=None)
@given(seed=st.one_of(st.integers(0, 2**32 - 1), st.integers(-(2**63), 2**63 - 1)), shapes=SHAPES)
def test_noise_is_torchs(seed, shapes):
    ours, theirs = generator(seed), torch.Generator("cpu").manual_seed(seed)
    for shape in shapes:
        expected = torch.randn(shape, generator=theirs).numpy()
        np.testing.assert_allclose(normal(ours, shape), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [16, 17, 31, 32, 33, 1000])
def test_counts_around_the_group_size(count):
    expected = torch.randn(count, generator=torch.Generator().manual_seed(5)).numpy()
    np.testing.assert_allclose(normal(generator(5), (count,)), expected, atol=1e-6, rtol=0)


def test_fewer_than_a_group_is_refused():
    with pytest.raises(ValueError, match="15 values"):
        normal(generator(0), (15,))
