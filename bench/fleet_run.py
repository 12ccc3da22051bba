"""A real fleet, `mrc-serve --ray`, measured for the simulation and held against it."""

import http.client
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, median

from tqdm import tqdm

from mrc_edit.bench.fleet_model import Arrival, Costs, Fleet, Service
from mrc_edit.bench.memory import processor_seconds
from mrc_edit.bench.serving import serving
from mrc_edit.core.errors import MRCError

ENOUGH = 5  # edits of each client that measures
CLIENTS = 256  # requests at once, at most


@dataclass(frozen=True)
class Server:
    """A running fleet, and how long it took to start."""

    address: str
    process: int
    start: float


@dataclass(frozen=True)
class Answer:
    """What a client saw of an edit. Edits of one batch have the same phases."""

    seconds: float
    batch: int
    phases: tuple[float, ...]
    received: int
    ended: float

    @property
    def edit(self) -> float:
        return sum(self.phases)


@contextmanager
def running(model: str, backend: str, fleet: Fleet) -> Iterator[Server]:
    """`mrc-serve --ray` with the replicas of the fleet."""
    least, most = fleet.replicas
    flags = ["--ray", "--backend", backend, "--replicas", f"{least}-{most}"]
    flags += ["--max-batch", str(fleet.max_batch), "--max-waiting", str(fleet.max_waiting)]
    began = time.perf_counter()
    with serving(model, flags) as (address, process):
        yield Server(address, process, time.perf_counter() - began)


def ask(address: str, body: bytes) -> Answer:
    """One edit."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection(address, timeout=600)
    try:
        connection.request("POST", "/v1/images/edits", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    ended = time.perf_counter()
    if response.status != 200:
        raise MRCError(f"the server answered {response.status}: {data.decode()[:200]}")
    (edit,) = json.loads(data)["data"]
    return Answer(ended - began, edit["batch_size"], tuple(edit["timings"].values()), len(data), ended)


def batches(answers: Sequence[Answer]) -> dict[int, list[float]]:
    """Seconds of the batches by their size, each batch once."""
    found: dict[int, list[float]] = defaultdict(list)
    for batch, phases in {(answer.batch, answer.phases) for answer in answers}:
        found[batch].append(sum(phases))
    return found


def measure(server: Server, fleet: Fleet, bodies: Mapping[int, bytes]) -> Costs:
    """The costs of a fleet whose replicas are all busy: they share a machine's memory and caches.

    Args:
        bodies: requests by size.
    """
    service: list[Service] = []
    alone: list[Answer] = []
    received: list[int] = []
    worked = edits = 0.0
    for size, body in bodies.items():
        alone += [ask(server.address, body) for _ in range(1 + ENOUGH)][1:]  # the first one opens what is lazy
        found: dict[int, list[float]] = defaultdict(list)
        for batch in tqdm(range(1, fleet.max_batch + 1), desc=f"{size} pixels", unit="batch size", disable=None):
            clients = 2 * batch * fleet.replicas[1]  # each replica edits a batch while the next one comes together
            before = processor_seconds(server.process)
            answers = saturate(server.address, body, clients, ENOUGH)
            worked += processor_seconds(server.process) - before
            edits += len(answers)
            received += [answer.received for answer in answers]
            for count, times in batches(answers).items():
                found[count] += times
        between = idle_between(answers, fleet.replicas[1])
        service += [Service(size, count, [seconds + between for seconds in times]) for count, times in found.items()]
    ingress = worked / edits
    added = median(answer.seconds - answer.edit for answer in alone)
    sent = fmean(map(len, bodies.values()))
    return Costs(service, ingress, max(0.0, added - ingress), server.start, sent, fmean(received))


def saturate(address: str, body: bytes, clients: int, each: int) -> list[Answer]:
    """Answers to so many clients that each ask again as soon as they are answered."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda _: ask(address, body), range(clients * each)))


def idle_between(answers: Sequence[Answer], replicas: int) -> float:
    """Seconds of a busy replica from batch to batch, which no phase of an edit counts; from the middle of a run."""
    ends = sorted(answer.ended for answer in answers)
    middle = ends[len(ends) // 5 : -len(ends) // 5]
    available = replicas * (middle[-1] - middle[0]) / (len(middle) - 1)  # replica seconds an edit
    edited = fmean(answer.edit / answer.batch for answer in answers)
    return max(0.0, (available - edited) * fmean(answer.batch for answer in answers))


def replay(address: str, arrivals: Sequence[Arrival], bodies: Mapping[int, bytes]) -> list[Answer]:
    """Ask for the arrivals at their times; the answers in their order."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = []
        for arrival in tqdm(arrivals, desc="replay", unit="edit", disable=None):
            time.sleep(max(0.0, began + arrival.time - time.perf_counter()))
            asked.append(pool.submit(ask, address, bodies[arrival.size]))
        return [each.result() for each in asked]
