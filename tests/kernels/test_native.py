"""A package without the native library: the reference computes, and one warning says why."""

import warnings

import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.kernels import native, ops
from mrc_edit.kernels.group_norm_silu.reference import group_norm_silu


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The only folder in which libraries are looked for, empty."""
    monkeypatch.setattr(native, "folders", [str(tmp_path)])
    caches = (native.library, native.ready)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


def test_without_the_library_the_reference_computes_and_one_warning_says_so(folder):
    hidden, weight, bias = torch.randn(1, 32, 3, 3), torch.randn(32), torch.randn(32)
    args = (hidden, weight, bias, 8, 1e-5, None, True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            torch.testing.assert_close(ops.group_norm_silu(*args), group_norm_silu(*args), rtol=0, atol=0)
    assert ops.chosen(hidden) == "reference"
    (warning,) = caught
    assert "libmrc_kernels.so was not built" in str(warning.message) and "C++ compiler" in str(warning.message)


def test_a_library_that_cannot_be_loaded_is_named(folder):
    (folder / native.LIBRARY).write_bytes(b"not a library")
    with pytest.raises(MRCError, match=r"libmrc_kernels\.so cannot be loaded"):
        native.library()
    with pytest.warns(UserWarning, match="cannot be loaded"):
        assert ops.chosen(torch.zeros(1)) == "reference"


def test_with_the_library_the_native_kernel_is_chosen():
    assert native.ready() and ops.chosen(torch.zeros(1)) == "native"
