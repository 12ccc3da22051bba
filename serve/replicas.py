"""Replicas of a model on Ray, an `AsyncEngine` in each, and before them a queue with the methods of `AsyncEngine`."""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, Unpack

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ..core.errors import MRCError
from ..engine import AsyncEngine, EditRequest, EditResult, Engine
from ..engine.failures import as_error
from ..engine.images import ImageLike
from ..engine.request import EditOptions
from ..engine.waiting import Closed, OnStep, QueueFull, TimedOut, closed
from .service import Model, describe

LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, ReplicaUnavailableError, Closed)
TRIES = 3  # an edit under which so many replicas died may be what kills them
TAKEN = "taken"  # the first thing that a replica tells of an edit
Value = TypeVar("Value")
Limits = set[asyncio.Timeout]


@dataclass(frozen=True)
class Deployed:
    """How a model is deployed.

    Attributes:
        source: arguments of `Engine.from_pretrained`.
        replicas: the fewest and the most.
        max_batch: images that a replica edits together, at most.
        drain: seconds that the edits of a replica get when it is to end.
        metadata: whether parameters are written into PNGs.
    """

    name: str
    source: dict[str, Any]
    replicas: tuple[int, int]
    max_batch: int
    drain: float
    metadata: bool


class Replica:
    """A model in a process of its own. Ray calls its methods; what they refuse they return, since an error that Ray
    carries is another one when it arrives."""

    async def __init__(self, deployed: Deployed, threads: int | None) -> None:  # type: ignore[misc]  # Ray awaits it
        engine = Engine.from_pretrained(**deployed.source, threads=threads)
        self.model = describe(engine, deployed.name, deployed.source["tier"], deployed.metadata)
        self.serving = await AsyncEngine(engine, deployed.max_batch, held(deployed.max_batch)).__aenter__()

    def check_health(self) -> None:
        """Ray replaces a replica whose queue has ended."""
        if not self.serving.open:
            raise closed()

    def describe(self) -> Model:
        return self.model

    async def check(self, request: EditRequest) -> MRCError | None:
        try:
            await self.serving.check(request)
        except MRCError as error:
            return error
        return None

    async def edit(
        self, image: ImageLike, instruction: str, tier: str | None, options: EditOptions
    ) -> AsyncIterator[object]:
        """Tells that it has the edit, every step as the arguments of `on_step`, and the result or the error."""
        yield TAKEN
        loop, told = asyncio.get_running_loop(), asyncio.Queue[tuple | None]()

        def on_step(*step: object) -> None:
            loop.call_soon_threadsafe(told.put_nowait, step)

        task = asyncio.create_task(self.serving.edit(image, instruction, tier=tier, on_step=on_step, **options))
        task.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (step := await told.get()) is not None:
                yield step
            try:
                yield task.result()
            except Exception as error:
                yield as_error(error)
        finally:
            task.cancel()


def held(max_batch: int) -> int:
    """Edits that a replica holds: those of a pass, and those of the next."""
    return 2 * max_batch


class Fleet:
    """A bounded queue before replicas, with the methods of `AsyncEngine`.

    An edit waits here until a replica has room for it. One whose replica dies is asked for again: it has no side
    effects, and its seed is fixed before.

    Args:
        max_waiting: edits that no replica has taken, at most.
    """

    def __init__(self, replicas: DeploymentHandle, max_waiting: int) -> None:
        self.replicas = replicas
        self.max_waiting = max_waiting
        self.waiting: Limits = set()
        self.running: Limits = set()
        self.open = True
        self.idle = asyncio.Event()

    async def __aenter__(self) -> "Fleet":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain(0)

    def room(self, requests: int = 1) -> bool:
        return self.open and len(self.waiting) + requests <= self.max_waiting

    def load(self) -> tuple[int, int]:
        """How many edits wait here, and how many a replica has."""
        return len(self.waiting), len(self.running)

    async def drain(self, seconds: float) -> None:
        """Refuse what waits here and all that comes; what a replica has gets so many seconds."""
        self.open = False
        now = asyncio.get_running_loop().time()
        end_by(now, self.waiting)
        end_by(now + seconds, self.running)
        while self.running:
            self.idle.clear()
            await self.idle.wait()

    async def check(self, request: EditRequest) -> None:
        refused = await insist(lambda: self.replicas.check.remote(request))
        if refused is not None:
            raise refused

    async def edit(
        self,
        image: ImageLike,
        instruction: str,
        *,
        timeout: float | None = None,
        tier: str | None = None,
        on_step: OnStep | None = None,
        **options: Unpack[EditOptions],
    ) -> EditResult:
        """As `AsyncEngine.edit`; `on_step` is called in the event loop. Steps begin anew where a replica dies."""
        since = time.perf_counter()
        if not self.open:
            raise closed()
        if not self.room():
            raise QueueFull(f"{self.max_waiting} edits wait already; ask again later")
        if options.get("seed") is None:
            options["seed"] = secrets.randbits(32)

        async def attempt() -> EditResult:
            self.running.discard(limit)
            self.waiting.add(limit)
            return await self.attempt((image, instruction, tier, options), limit, on_step, since)

        try:
            async with asyncio.timeout(timeout) as limit:
                try:
                    return await insist(attempt)
                finally:
                    self.waiting.discard(limit)
                    self.running.discard(limit)
                    if not self.running:
                        self.idle.set()
        except TimeoutError:
            if not self.open:
                raise closed() from None
            raise TimedOut(f"the edit was not done within {timeout} s; give it more time or fewer steps") from None

    async def attempt(
        self, arguments: tuple, limit: asyncio.Timeout, on_step: OnStep | None, since: float
    ) -> EditResult:
        """The edit by one replica, which stops when this is cancelled."""
        taken = since
        stream: Any = self.replicas.options(stream=True).edit.remote(*arguments)
        try:
            async for told in stream:
                if told == TAKEN:
                    self.waiting.discard(limit)
                    self.running.add(limit)
                    taken = time.perf_counter()
                elif isinstance(told, MRCError):
                    raise told
                elif isinstance(told, EditResult):
                    return replace(told, waited=taken - since + told.waited)
                elif on_step is not None:
                    on_step(*told)
        finally:
            stream.cancel()
        raise MRCError("a replica ended an edit without a result; its log in Ray's session folder says why")


def end_by(when: float, limits: Limits) -> None:
    """Let what has later limits, or none, end at that time of the loop."""
    for limit in limits:
        if not limit.expired() and (limit.when() or math.inf) > when:
            limit.reschedule(when)


async def insist(attempt: Callable[[], Awaitable[Value]]) -> Value:
    """Try again where a replica is lost.

    Raises:
        MRCError: so many were lost that the edit itself may be the cause.
    """
    for _ in range(TRIES):
        try:
            return await attempt()
        except LOST:
            continue
    raise MRCError(f"{TRIES} replicas died, one after the other, under this edit; Ray's logs say why")
