"""Intervals and paired tests of the quality benchmarks."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 10_000


def interval(passed: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in per cent."""
    z, share = 1.959964, passed / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return round(100 * max(0.0, centre - half), 1), round(100 * (centre + half), 1)  # rounding makes 0 a -0


def mean_interval(values: Sequence[float], images: Sequence[str]) -> tuple[float, float]:
    """95 % bootstrap interval of a mean (percentiles, always the same resamples).

    Whole images are drawn, since the edits of one image are not independent.
    """
    names = sorted(set(images))
    place = np.array([names.index(image) for image in images])
    sums = np.bincount(place, values)
    counts = np.bincount(place)
    drawn = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of two or more independent values, by Student's t."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's test: how likely is so uneven a split of the pairs of which one passed?"""
    return float(stats.binomtest(first_only, first_only + second_only).pvalue) if first_only + second_only else 1.0


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, equal pairs left out; 1 where all are equal."""
    return float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0
