import numpy as np
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.noise_schedule import alphas_cumprod, beta_quantile
from mrc_edit.engine.scheduler_config import settings_of


def test_beta_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    shares = np.concatenate([np.linspace(1, 0, 41), [1e-9, 1 - 1e-9, 1e-3]])
    np.testing.assert_allclose(beta_quantile(shares), stats.beta.ppf(shares, 0.6, 0.6), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "betas", [{"beta_end": 0.99}, {"beta_start": 1e-300, "beta_end": 0.02}, {"trained_betas": [0.5] * 1000}]
)
def test_betas_without_noise_or_signal_are_refused(betas):
    with pytest.raises(MRCError, match="no noise, or the last leaves no signal"):
        alphas_cumprod(settings_of("euler", betas))
