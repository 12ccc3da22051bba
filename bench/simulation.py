"""A fleet as `serve.ray` makes it, in simulated time: a queue, an ingress, replicas that edit in batches.

Which edits go together is decided by the code that serves (`engine.waiting.next_batch`).
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mrc_edit.bench.fleet_model import Arrival, Costs, Fleet, Outcome
from mrc_edit.engine.waiting import next_batch

TRIES = 3  # as `serve.replicas`
LOOK_BACK, UP_DELAY, DOWN_DELAY = 10, 5, 300  # seconds, as `serve.ray` sets Ray's autoscaler
TICK = 1.0  # seconds between looks at the load


@dataclass(eq=False)
class Job:
    """One edit on its way. It has what `next_batch` asks of a request."""

    arrival: Arrival
    replica: "Replica | None" = None
    tries: int = 0
    over: bool = False  # done, refused, gone or failed
    count: int = 1
    generators: frozenset[int] = frozenset()

    @property
    def kind(self) -> int:
        return self.arrival.size


@dataclass(eq=False)
class Replica:
    """A replica. `batch` is what it edits, `ongoing` all that it holds, `place` its own in `Simulation.roomy`."""

    queue: list[Job] = field(default_factory=list)
    batch: list[Job] = field(default_factory=list)
    ongoing: set[Job] = field(default_factory=set)
    up: bool = False
    leaving: bool = False
    began: float = 0.0
    since: float = 0.0
    place: int | None = None


class Simulation:
    """One run. `run` gives its outcome."""

    def __init__(self, costs: Costs, fleet: Fleet, seed: int = 0) -> None:
        self.costs, self.fleet = costs, fleet
        self.times = {(each.size, each.batch): each.seconds for each in costs.service}
        self.random = random.Random(seed)
        self.now, self.numbers = 0.0, itertools.count()
        self.events: list[tuple[float, int, Callable[..., None], tuple]] = []
        self.outcome = Outcome()
        self.seats = 0  # edits that no replica has yet
        self.waiting: deque[Job] = deque()
        self.replicas: list[Replica] = []
        self.roomy: list[Replica] = []  # those that can take one more
        self.ingress_free = 0.0
        self.inside = 0
        self.left = 0  # arrivals whose fate is open
        self.loads: deque[int] = deque(maxlen=round(LOOK_BACK / TICK))
        self.wanted_since: float | None = None
        self.wanted_more = False

    def run(self, arrivals: Iterable[Arrival]) -> Outcome:
        """Everything from the first arrival to the last answer."""
        jobs = [Job(arrival) for arrival in sorted(arrivals, key=lambda arrival: arrival.time)]
        self.indices = {job: number for number, job in enumerate(jobs)}
        self.left = len(jobs)
        for _ in range(self.fleet.replicas[0]):
            self.start_replica(0.0)
        for job in jobs:
            self.at(job.arrival.time, self.arrive, job)
        if self.fleet.replicas[0] < self.fleet.replicas[1]:
            self.at(TICK, self.scale)
        while self.events and self.left:
            self.now, _, call, arguments = heapq.heappop(self.events)
            call(*arguments)
        for replica in self.replicas:
            self.stop_counting(replica)
        self.outcome.seconds = self.now
        return self.outcome

    def at(self, time: float, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), call, arguments))

    # an edit's way

    def arrive(self, job: Job) -> None:
        if self.seats >= self.fleet.max_waiting:
            self.outcome.refused += 1
            self.end(job)
            return
        self.seats += 1
        self.inside += 1
        self.outcome.held = max(self.outcome.held, self.inside)
        if job.arrival.patience < math.inf:
            self.at(self.now + job.arrival.patience, self.cancel, job)
        self.through_ingress(self.enqueue, job)

    def through_ingress(self, call: Callable[..., None], job: Job) -> None:
        """Half of what the ingress does for an edit, one edit after the other, and half of its way."""
        cost = self.costs.ingress / 2
        self.ingress_free = max(self.now, self.ingress_free) + cost
        self.outcome.ingress += cost
        self.at(self.ingress_free + self.costs.transit / 2, call, job)

    def enqueue(self, job: Job) -> None:
        if not job.over:
            self.waiting.append(job)
            self.dispatch()

    def dispatch(self) -> None:
        """Give what waits to replicas with room: of two at random the one that has less, as Ray does."""
        while self.waiting and self.roomy:
            some = self.random.sample(self.roomy, min(2, len(self.roomy)))
            replica = min(some, key=lambda replica: len(replica.ongoing))
            job = self.waiting.popleft()
            self.seats -= 1
            job.replica = replica
            job.tries += 1
            replica.ongoing.add(job)
            replica.queue.append(job)
            self.note_room(replica)
            self.begin(replica)

    def note_room(self, replica: Replica) -> None:
        """Keep `roomy` right, in constant time."""
        room = replica.up and not replica.leaving and len(replica.ongoing) < 2 * self.fleet.max_batch
        if room and replica.place is None:
            replica.place = len(self.roomy)
            self.roomy.append(replica)
        elif not room and replica.place is not None:
            last = self.roomy.pop()
            if last is not replica:
                self.roomy[replica.place], last.place = last, replica.place
            replica.place = None

    def begin(self, replica: Replica) -> None:
        """Edit the next batch, if nothing is being edited."""
        if replica.batch or not replica.queue or not replica.up:
            return
        replica.batch = batch = next_batch(replica.queue, self.fleet.max_batch)
        replica.queue = [job for job in replica.queue if job not in batch]
        replica.began = self.now
        self.outcome.batches.append(len(batch))
        seconds = self.random.choice(self.times[batch[0].kind, len(batch)])
        self.at(self.now + seconds, self.finish, replica, batch)

    def finish(self, replica: Replica, batch: list[Job]) -> None:
        """The batch is done, unless the replica was lost, or left it because nobody waited."""
        if replica.batch is not batch:
            return
        for job in batch:
            if not job.over:
                self.through_ingress(self.answer, job)
        self.free(replica)

    def free(self, replica: Replica) -> None:
        self.outcome.busy += self.now - replica.began
        replica.ongoing -= set(replica.batch)
        replica.batch = []
        self.note_room(replica)
        self.begin(replica)
        if replica.leaving and not replica.ongoing:
            self.remove(replica)
        self.dispatch()

    def answer(self, job: Job) -> None:
        if not job.over:
            self.outcome.latencies.append(self.now - job.arrival.time)
            self.outcome.order.append(self.indices[job])
            self.leave(job)

    def leave(self, job: Job) -> None:
        self.inside -= 1
        self.end(job)

    def end(self, job: Job) -> None:
        job.over = True
        self.left -= 1

    def cancel(self, job: Job) -> None:
        """The client goes: what waits is forgotten, a batch ends when nobody waits for any of it."""
        if job.over:
            return
        self.outcome.cancelled += 1
        self.leave(job)
        replica = job.replica
        if replica is None:
            self.seats -= 1
            if job in self.waiting:
                self.waiting.remove(job)
        elif job in replica.queue:
            replica.queue.remove(job)
            replica.ongoing.discard(job)
            self.note_room(replica)
            self.dispatch()
        elif job in replica.batch and all(other.over for other in replica.batch):
            self.free(replica)

    # replicas

    def start_replica(self, seconds: float) -> None:
        replica = Replica()
        self.replicas.append(replica)
        self.at(self.now + seconds, self.ready, replica)

    def ready(self, replica: Replica) -> None:
        if replica not in self.replicas:
            return
        replica.up, replica.since = True, self.now
        self.note_room(replica)
        if self.fleet.lifetime < math.inf:
            self.at(self.now + self.random.expovariate(1 / self.fleet.lifetime), self.lose, replica)
        self.dispatch()

    def stop_counting(self, replica: Replica) -> None:
        if replica.up:
            replica.up = False
            self.note_room(replica)
            self.outcome.available += self.now - replica.since
            if replica.batch:
                self.outcome.busy += self.now - replica.began

    def remove(self, replica: Replica) -> None:
        self.stop_counting(replica)
        self.replicas.remove(replica)

    def lose(self, replica: Replica) -> None:
        """What it had goes to others; another one is started."""
        if replica not in self.replicas:
            return
        self.remove(replica)
        for job in [*replica.batch, *replica.queue]:
            job.replica = None
            if job.over:
                continue
            if job.tries >= TRIES:
                self.outcome.failed += 1
                self.leave(job)
            else:
                self.outcome.retried += 1
                self.seats += 1
                self.waiting.append(job)
        replica.batch, replica.queue = [], []
        self.outcome.starts += 1
        self.start_replica(self.costs.start)
        self.dispatch()

    def scale(self) -> None:
        """Ray's autoscaler: the mean load of the last seconds by what a replica should have, after a delay."""
        self.at(self.now + TICK, self.scale)
        self.loads.append(self.inside)
        least, most = self.fleet.replicas
        staying = [replica for replica in self.replicas if not replica.leaving]
        wanted = math.ceil(sum(self.loads) / len(self.loads) / self.fleet.max_batch)
        change = min(most, max(least, wanted)) - len(staying)
        if not change or self.wanted_since is None or self.wanted_more != (change > 0):
            self.wanted_since, self.wanted_more = (self.now if change else None), change > 0
            return
        if self.now - self.wanted_since < (UP_DELAY if change > 0 else DOWN_DELAY):
            return
        self.wanted_since = None
        for _ in range(change):
            self.outcome.starts += 1
            self.start_replica(self.costs.start)
        for replica in sorted(staying, key=lambda replica: len(replica.ongoing))[: max(0, -change)]:
            replica.leaving = True
            self.note_room(replica)
            if not replica.ongoing:
                self.remove(replica)
