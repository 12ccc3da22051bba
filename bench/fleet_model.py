"""What a simulated fleet is: its costs, its set-up, what is asked of it and what became of that."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from mrc_edit.core.errors import MRCError
from mrc_edit.core.schema import Between


@dataclass(frozen=True)
class Arrival:
    """An edit that is asked for.

    Attributes:
        size: pixels of a side; only edits of one size go together.
        patience: seconds after which the client goes.
    """

    time: float
    size: int
    patience: float = math.inf


@dataclass(frozen=True)
class Service:
    """Seconds that batches of so many edits took, of images of so many pixels a side."""

    size: int
    batch: int
    seconds: list[float]


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        service: of every size and batch size; each batch of the simulation takes one of these times.
        ingress: seconds of the ingress's processor for an edit.
        transit: seconds that an edit spends between client, ingress and replica without any of them working.
        start: seconds from the decision for a replica to its first edit.
        bytes_in, bytes_out: of a request and of its answer.
    """

    service: list[Service]
    ingress: Annotated[float, Between(0)] = 0.0
    transit: Annotated[float, Between(0)] = 0.0
    start: Annotated[float, Between(0)] = 0.0
    bytes_in: Annotated[float, Between(0)] = 0.0
    bytes_out: Annotated[float, Between(0)] = 0.0


@dataclass(frozen=True)
class Fleet:
    """How a fleet is set up: the flags of `mrc-serve --ray`.

    Attributes:
        replicas: the fewest and the most.
        lifetime: mean seconds until a replica is lost.
    """

    replicas: tuple[int, int]
    max_batch: int = 8
    max_waiting: int = 64
    lifetime: float = math.inf


def check(costs: Costs, fleet: Fleet, sizes: Iterable[int]) -> None:
    """Refuse costs that lack what the fleet does.

    Raises:
        MRCError: a size and a batch that were not measured.
    """
    known = {(each.size, each.batch) for each in costs.service if each.seconds}
    for size in sizes:
        if missing := [batch for batch in range(1, fleet.max_batch + 1) if (size, batch) not in known]:
            raise MRCError(f"batches of {missing[0]} at {size} pixels were not measured; measure them, or ask for less")


@dataclass
class Outcome:
    """What became of the arrivals.

    Attributes:
        latencies: seconds from arrival to answer of those that were done, in the order in which they were done.
        order: the arrivals' numbers, likewise.
        batches: sizes of the batches.
        busy: seconds in which replicas edited.
        available: seconds in which replicas could edit, of all together.
        ingress: seconds in which the ingress's processor worked.
        held: the most edits that were in the fleet at once.
        retried: edits that were asked for again since their replica was lost.
        starts: replicas that were started after the beginning.
    """

    latencies: list[float] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    retried: int = 0
    starts: int = 0
    held: int = 0
    busy: float = 0.0
    available: float = 0.0
    ingress: float = 0.0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        return len(self.latencies)

    @property
    def utilization(self) -> float:
        return self.busy / self.available if self.available else 0.0

    def percentile(self, share: float) -> float | None:
        """Seconds within which that share, in per cent, of the done edits was answered."""
        return float(np.percentile(self.latencies, share)) if self.latencies else None
