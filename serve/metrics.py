"""What `/metrics` shows, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0

from ..engine import EditResult

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)
BATCHES = (1, 2, 4, 8, 16, 32)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0


class Metrics:
    """The counters of one server, in a registry of their own.

    Args:
        load: how many requests wait, and how many are edited.
    """

    def __init__(self, load: Callable[[], tuple[int, int]]) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("mrc_requests", "Requests by route and status", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "mrc_request_seconds", "Seconds of a request, by route", ["route"], registry=own, buckets=SECONDS
        )
        self.edits = Counter("mrc_edits", "Edits that were finished", registry=own)
        self.steps = Counter("mrc_steps", "Denoising steps, counted for each request of a batch", registry=own)
        self.waited = Histogram(
            "mrc_waited_seconds", "Seconds from a request to its batch", registry=own, buckets=SECONDS
        )
        self.batch = Histogram("mrc_batch_size", "Images of the batch of an edit", registry=own, buckets=BATCHES)
        Gauge("mrc_waiting", "Requests that wait", registry=own).set_function(lambda: load()[0])
        Gauge("mrc_running", "Requests that are edited", registry=own).set_function(lambda: load()[1])

    def edited(self, result: EditResult) -> None:
        self.edits.inc()
        self.waited.observe(result.waited)
        self.batch.observe(result.batch_size)

    def text(self) -> bytes:
        return generate_latest(self.registry)
