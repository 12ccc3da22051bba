"""The requests that wait in an `AsyncEngine`, and which of them go together."""

import asyncio
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from ..core.errors import MRCError
from .engine import EditResult, passes
from .failures import as_error
from .request import Checked
from .tiers import Tier

OnStep = Callable[[int, int, np.ndarray], None]


class QueueFull(MRCError):
    """`max_waiting` requests wait already."""


class Closed(MRCError):
    """The AsyncEngine takes no requests any more."""


class TimedOut(MRCError, TimeoutError):
    """A request took longer than its `timeout`."""


class Abandoned(Exception):
    """No request of the batch has anyone who waits for it."""


@dataclass(eq=False)
class Waiting:
    """A checked request and the future that its caller awaits.

    Attributes:
        since: when the request came, by `time.perf_counter`.
        warnings: those of its result.
        waited: seconds from then to its batch.
        failure: what `on_step` raised.
    """

    request: Checked
    future: asyncio.Future[EditResult]
    tier: Tier
    on_step: OnStep | None
    since: float
    warnings: list[str]
    waited: float = 0.0
    failure: Exception | None = None

    @property
    def kind(self) -> tuple:
        """Requests of one kind can be edited in one pass, or in one pass a size."""
        return self.tier, self.request.settings, frozenset(edit.image.size for edit in self.request.edits)

    @property
    def count(self) -> int:
        """Edits of the request."""
        return len(self.request.edits)

    @property
    def generators(self) -> set[int]:
        return {id(edit.generator) for edit in self.request.edits if edit.generator is not None}

    @property
    def listens(self) -> bool:
        """Whether anyone still waits for the result."""
        return self.failure is None and not self.future.done()

    def tell(self, step: int, steps: int, latents: np.ndarray) -> None:
        """Call `on_step`; what it raises fails this request alone."""
        if self.on_step is None or not self.listens:
            return
        try:
            self.on_step(step, steps, latents)
        except BaseException as error:
            self.failure = as_error(error)


class Batched(Protocol):
    """What the choice of a batch asks of a request: the properties of `Waiting`."""

    @property
    def kind(self) -> object: ...
    @property
    def count(self) -> int: ...
    @property
    def generators(self) -> Set[int]: ...


Request = TypeVar("Request", bound=Batched)


def next_batch(requests: list[Request], max_batch: int) -> list[Request]:
    """The oldest request, and of its kind the next that fit, but for those that share a generator."""
    kind, room, generators = requests[0].kind, max_batch, set[int]()
    batch = []
    for waiting in requests:
        if waiting.kind != kind or waiting.generators & generators:
            continue
        if (room := room - waiting.count) < 0:
            break
        batch.append(waiting)
        generators |= waiting.generators
    return batch


def own_places(batch: list[Waiting]) -> list[list[tuple[Waiting, list[int]]]]:
    """For each pass of a batch, every request with the places of its own edits in that pass."""
    owners = [waiting for waiting in batch for _ in waiting.request.edits]
    edits = [edit for waiting in batch for edit in waiting.request.edits]
    return [
        [(waiting, [place for place, row in enumerate(rows) if owners[row] is waiting]) for waiting in batch]
        for rows in passes(edits)
    ]


def closed() -> Closed:
    return Closed("the AsyncEngine is closed; ask for edits inside its `async with`")
