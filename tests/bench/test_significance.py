import numpy as np
import pytest
from scipy import stats

from mrc_edit.bench.significance import interval, mcnemar, mean_interval, wilcoxon


def test_interval_is_wilsons():
    assert interval(85, 100) == (76.7, 90.7)  # Wilson 1927, as statsmodels gives it
    assert interval(0, 10)[0] == 0 and interval(10, 10)[1] == 100
    assert all(str(interval(0, count)[0]) == "0.0" for count in range(1, 30))  # not -0.0


def test_mean_interval_is_scipys_where_images_have_one_edit_each():
    values = np.random.RandomState(0).randint(0, 6, 60).astype(float)
    ours = mean_interval(values, [str(i) for i in range(60)])
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.03)


def test_mean_interval_draws_whole_images():
    values = [0.0] * 7 + [5.0] * 7
    images = ["a"] * 7 + ["b"] * 7
    assert mean_interval(values, images) == (0, 5)  # two images: a quarter of the draws is of one alone
    low, high = mean_interval(values, [str(i) for i in range(14)])
    assert 0.7 < low < 2 < 3 < high < 4.3


def test_mcnemar_by_hand():
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(0, 0) == 1 and mcnemar(4, 4) == 1


def test_wilcoxon_by_hand():
    assert wilcoxon([1, 2, 3, 4, 5]) == pytest.approx(2 / 2**5)
    assert wilcoxon([0, 0, 0]) == 1
