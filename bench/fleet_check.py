"""The simulation held against a real fleet that got the same arrivals."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from mrc_edit.bench.fleet_model import Arrival, Costs, Fleet
from mrc_edit.bench.fleet_run import Answer, batches
from mrc_edit.bench.report import Column, Row
from mrc_edit.bench.simulation import Simulation

RUNS = 20  # simulations of the same arrivals, with other draws of the measured times
SHARES = (50, 90, 99)
COLUMNS = [
    Column("", "{of}"),
    Column("real", "{real:.3f} {unit}"),
    Column("simulated", "{simulated:.3f} {unit}"),
    Column("simulated / real", "{ratio:.2f}"),
]


def together(some: Costs, more: Costs) -> Costs:
    """The costs of two measurements of one fleet, each for half."""
    means = {name: (getattr(some, name) + getattr(more, name)) / 2 for name in ("ingress", "transit")}
    others = {(each.size, each.batch): each.seconds for each in more.service}
    service = [replace(each, seconds=each.seconds + others.get((each.size, each.batch), [])) for each in some.service]
    service += [each for each in more.service if (each.size, each.batch) not in {(s.size, s.batch) for s in service}]
    return replace(some, service=service, **means)


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
