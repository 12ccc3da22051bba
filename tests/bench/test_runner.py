import pytest

from mrc_edit.bench.runner import percentiles, ratios, run_in_turn


def test_variants_run_in_turn():
    calls = []

    def run(name):
        calls.append(name)
        return len(calls)

    results = run_in_turn({name: lambda name=name: run(name) for name in "ab"}, rounds=3, warmup=1)
    assert calls == list("abababab")
    assert results == {"a": [3, 5, 7], "b": [4, 6, 8]}  # without the warm-up


def test_percentiles_of_known_numbers():
    assert percentiles(range(1, 102)) == {"p50": 51, "p90": 91, "p99": 100}
    assert percentiles([1.0, 2.0]) == pytest.approx({"p50": 1.5, "p90": 1.9, "p99": 1.99})


def test_ratios_are_taken_round_by_round():
    assert ratios([2, 30, 4], [1, 10, 4]) == {"median": 2, "least": 1, "greatest": 3}
