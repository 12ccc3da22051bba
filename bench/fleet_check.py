"""The simulation held against a real fleet that got the same arrivals."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from mrc_edit.bench.fleet_model import Arrival, Costs, Fleet, Service
from mrc_edit.bench.fleet_run import Answer, batches
from mrc_edit.bench.report import Column, Row
from mrc_edit.bench.simulation import Simulation

RUNS = 20  # simulations of the same arrivals, with other draws of the measured times
SHARES = (50, 90, 99)
ENOUGH = 5  # batches of a size
COLUMNS = [
    Column("", "{of}"),
    Column("real", "{real:.3f} {unit}"),
    Column("simulated", "{simulated:.3f} {unit}"),
    Column("simulated / real", "{ratio:.2f}"),
]


def under_load(busy: Costs, seen: Sequence[tuple[Arrival, Answer]]) -> Costs:
    """The costs with the times of batches that were seen, where these are enough; else as measured before."""
    found: list[Service] = []
    for known in busy.service:
        times = batches([answer for arrival, answer in seen if arrival.size == known.size])[known.batch]
        found.append(replace(known, seconds=times) if len(times) >= ENOUGH else known)
    return replace(busy, service=found)


def compare(costs: Costs, fleet: Fleet, asked: Sequence[Arrival], answers: Sequence[Answer]) -> list[Row]:
    """Latency, size of the batches and seconds that replicas edit for an edit: real, simulated, and their ratio."""
    endless = replace(fleet, lifetime=math.inf, max_waiting=len(asked))
    runs = [Simulation(costs, endless, seed).run(asked) for seed in range(RUNS)]
    times, edited = [answer.seconds for answer in answers], batches(answers)
    rows = [("mean", "s", fmean(times), fmean(fmean(run.latencies) for run in runs))]
    for share in SHARES:
        simulated = fmean(float(np.percentile(run.latencies, share)) for run in runs)
        rows.append((f"p{share}", "s", float(np.percentile(times, share)), simulated))
    size = fmean(len(run.latencies) / len(run.batches) for run in runs)
    rows.append(("edits a batch", "", len(answers) / sum(map(len, edited.values())), size))
    return [
        {"of": name, "unit": unit, "real": real, "simulated": simulated, "ratio": simulated / real}
        for name, unit, real, simulated in rows
    ]
