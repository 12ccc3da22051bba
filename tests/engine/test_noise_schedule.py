import numpy as np
import pytest

from mrc_edit.engine.noise_schedule import beta_quantile


def test_beta_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    shares = np.concatenate([np.linspace(1, 0, 41), [1e-9, 1 - 1e-9, 1e-3]])
    np.testing.assert_allclose(beta_quantile(shares), stats.beta.ppf(shares, 0.6, 0.6), rtol=1e-12, atol=1e-14)
