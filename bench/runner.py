"""Run variants in turn, and summarize what was measured."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

import numpy as np
from tqdm import tqdm

Name = TypeVar("Name")
Result = TypeVar("Result")

PERCENTILES = (50, 90, 99)


def run_in_turn(
    variants: Mapping[Name, Callable[[], Result]], rounds: int, warmup: int = 0, unit: str = "run"
) -> dict[Name, list[Result]]:
    """Run every variant once a round, in the order given, so that a slow moment of the machine slows all.

    Args:
        warmup: rounds before those, whose results are dropped.
        unit: what the progress bar counts.

    Returns:
        `rounds` results of each variant.
    """
    results: dict[Name, list[Result]] = {name: [] for name in variants}
    with tqdm(total=(warmup + rounds) * len(variants), desc="bench", unit=unit, disable=None) as bar:
        for number in range(warmup + rounds):
            for name, run in variants.items():
                result = run()
                if number >= warmup:
                    results[name].append(result)
                bar.update()
    return results


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`p50`, `p90` and `p99` of the values, interpolated linearly."""
    return {f"p{share}": float(np.percentile(values, share)) for share in PERCENTILES}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest ratio of values of the same round."""
    each = [above / below for above, below in zip(numerators, denominators, strict=True)]
    return {"median": median(each), "least": min(each), "greatest": max(each)}
