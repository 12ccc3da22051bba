"""Edits that are asked for at random: bursts, sizes, clients that go."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mrc_edit.bench.fleet_model import Arrival

BURST = 10.0  # mean seconds of a burst


@dataclass(frozen=True)
class Traffic:
    """What is asked for.

    Attributes:
        rate: edits a second, in the mean.
        sizes: shares by pixels of a side; they need not add up to one.
        burst: how many times as many come in a burst as between bursts; 1 for none.
        bursting: share of the time that bursts take.
        going: share of the clients that go before their answer, if it takes longer than their patience.
        patience: mean seconds until these go.
    """

    rate: float
    sizes: Mapping[int, float]
    burst: float = 1.0
    bursting: float = 0.1
    going: float = 0.0
    patience: float = 10.0


def arrivals(traffic: Traffic, seconds: float, seed: int) -> list[Arrival]:
    """Poisson arrivals of so many seconds, at one of two rates in turn; the same for the same seed."""
    random = np.random.default_rng(seed)
    calm = traffic.rate / (1 - traffic.bursting + traffic.bursting * traffic.burst)
    calm_seconds = BURST * (1 - traffic.bursting) / traffic.bursting
    times: list[np.ndarray] = []
    begin, bursting = 0.0, bool(random.random() < traffic.bursting)
    while begin < seconds:
        end = min(seconds, begin + random.exponential(BURST if bursting else calm_seconds))
        count = random.poisson((end - begin) * calm * (traffic.burst if bursting else 1))
        times.append(np.sort(random.uniform(begin, end, count)))
        begin, bursting = end, not bursting
    at = np.concatenate(times)
    shares = np.array(list(traffic.sizes.values()), dtype=float)
    sizes = random.choice(list(traffic.sizes), len(at), p=shares / shares.sum())
    goes = random.random(len(at)) < traffic.going
    patience = np.where(goes, random.exponential(traffic.patience, len(at)), math.inf)
    return [Arrival(*row) for row in zip(at.tolist(), sizes.tolist(), patience.tolist(), strict=True)]
