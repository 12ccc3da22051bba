"""`AsyncEngine`: many requests at once over one engine (docs/serving.md).

All state lives in the event loop; one worker thread runs the engine and only asks whether the
requests of its batch still have someone who waits for them.
"""

import asyncio
import math
import numbers
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Unpack

from ..core.errors import MRCError
from .engine import EditResult, Engine
from .failures import as_error
from .images import ImageLike
from .request import Checked, EditOptions, EditRequest, check

READERS = 4  # threads that read images; one that is stuck in a file must not be one of asyncio's own


class QueueFull(MRCError):
    """`max_waiting` requests wait already."""


class TimedOut(MRCError, TimeoutError):
    """A request took longer than its `timeout`."""


class Abandoned(Exception):
    """No request of the batch has anyone who waits for it."""


@dataclass(eq=False)
class Waiting:
    """A checked request and the future that its caller awaits."""

    request: Checked
    future: asyncio.Future[EditResult]

    @property
    def kind(self) -> tuple:
        """Requests of one kind can be edited in one pass, or in one pass a size."""
        return self.request.settings, frozenset(edit.image.size for edit in self.request.edits)

    @property
    def generators(self) -> set[int]:
        return {id(edit.generator) for edit in self.request.edits if edit.generator is not None}


class AsyncEngine:
    """A bounded queue before an engine, which nothing else may use meanwhile.

        async with AsyncEngine(engine, max_batch=8) as serving:
            result = await serving.edit(image, "make it snow", seed=1, timeout=60)

    When the engine is free it takes the oldest request, and the oldest others of the same size, steps, sampler,
    guidance and output type.

    Args:
        max_batch: images a pass, at most.
        max_waiting: requests that wait for a pass, at most.
    """

    def __init__(self, engine: Engine, max_batch: int = 8, max_waiting: int = 64) -> None:
        for name, value in (("max_batch", max_batch), ("max_waiting", max_waiting)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MRCError(f"{name} is {value!r}; give a whole number from 1 up")
        self.engine = engine
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.waiting: list[Waiting] = []
        self.running: list[Waiting] = []
        self.checking = 0  # requests whose image is being read
        self.worker: asyncio.Task | None = None  # None while closed

    async def __aenter__(self) -> "AsyncEngine":
        self.ready = asyncio.Event()  # a request waits, or the worker must end
        self.thread = ThreadPoolExecutor(1, "mrc-engine")
        self.thread.submit(int)  # starts it now: an error here stops nobody
        self.readers = ThreadPoolExecutor(READERS, "mrc-image")
        self.worker = asyncio.create_task(self.serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Refuse what waits and stop what runs, within a step."""
        worker = self.worker
        self.close()
        try:
            if worker is not None:
                await worker
        finally:
            self.thread.shutdown()
            self.readers.shutdown(wait=False)  # one may wait for a file that never comes

    def close(self) -> None:
        """Refuse what waits and what runs, and all that comes."""
        self.worker = None
        for waiting in (*self.waiting, *self.running):
            if not waiting.future.done():
                waiting.future.set_exception(closed())
        self.waiting = []
        self.ready.set()

    async def edit(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        instruction: str | Sequence[str] | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[EditOptions],
    ) -> EditResult:
        """Edit one image or a list of them, in a batch with others that are asked for meanwhile.

        A request that is cancelled or times out is forgotten at once, and changes no other.

        Args:
            timeout: seconds from this call to the result; None for no limit.
            image, instruction, options: the fields of `EditRequest`; at most `max_batch` edits. A generator draws
                for one request at a time.

        Returns:
            What `Engine.edit` returns for the request alone; the timings are those of its batch.

        Raises:
            MRCError: as `Engine.edit`; `QueueFull` and `TimedOut` are kinds of it.
        """
        if timeout is not None and (not isinstance(timeout, numbers.Real) or not 0 < timeout < math.inf):
            raise MRCError(f"timeout is {timeout!r}; give seconds, or None for no limit")
        request = EditRequest(image, instruction, **options)
        if self.worker is None:
            raise closed()
        if self.checking + len(self.waiting) >= self.max_waiting:
            raise QueueFull(f"{self.max_waiting} requests wait already; ask again later, or raise max_waiting")
        try:
            async with asyncio.timeout(timeout):
                waiting = Waiting(await self.check(request), asyncio.get_running_loop().create_future())
                self.waiting.append(waiting)
                self.ready.set()
                try:
                    return await waiting.future
                finally:
                    if waiting in self.waiting:
                        self.waiting.remove(waiting)
        except TimeoutError:
            raise TimedOut(f"the edit was not done within {timeout} s; give it more time or fewer steps") from None

    async def check(self, request: EditRequest) -> Checked:
        """Read and check in another thread; nothing that could fail a batch passes."""
        self.checking += 1
        try:
            loop = asyncio.get_running_loop()
            checked = await loop.run_in_executor(self.readers, self.read, request)
        finally:
            self.checking -= 1
        if (count := len(checked.edits)) > self.max_batch:
            raise MRCError(
                f"{count} edits in one request, and max_batch is {self.max_batch}; ask for fewer at once, or raise it",
                argument="image" if request.num_images_per_prompt == 1 else "num_images_per_prompt",
            )
        if self.worker is None:
            raise closed()
        return checked

    def read(self, request: EditRequest) -> Checked:
        """Check a request, in a reader's thread."""
        if self.worker is None:
            raise closed()
        try:
            return check(self.engine.backend, request)
        except MRCError:
            raise
        except BaseException as error:
            raise as_error(error) from error

    async def serve(self) -> None:
        """Edit batch after batch until closed. Should it fail, nobody waits for ever."""
        try:
            while self.worker is not None:
                if self.waiting:
                    await self.serve_batch()
                else:
                    self.ready.clear()
                    await self.ready.wait()
        finally:
            self.close()

    async def serve_batch(self) -> None:
        """Edit the oldest request and others of its kind."""
        self.running = self.next_batch()
        self.waiting = [waiting for waiting in self.waiting if waiting not in self.running]
        outcomes = await asyncio.get_running_loop().run_in_executor(self.thread, self.run, self.running)
        for waiting, outcome in zip(self.running, outcomes, strict=True):
            if waiting.future.done():
                continue
            if isinstance(outcome, Exception):
                waiting.future.set_exception(outcome)
            else:
                waiting.future.set_result(outcome)
        self.running = []

    def next_batch(self) -> list[Waiting]:
        """The oldest request, and of its kind the next that fit, but for those that share a generator."""
        kind, room, generators = self.waiting[0].kind, self.max_batch, set[int]()
        batch = []
        for waiting in self.waiting:
            if waiting.kind != kind or waiting.generators & generators:
                continue
            if (room := room - len(waiting.request.edits)) < 0:
                break
            batch.append(waiting)
            generators |= waiting.generators
        return batch

    def run(self, batch: list[Waiting]) -> Sequence[EditResult | Exception]:
        """One pass, in the worker thread. A batch that fails is edited one by one, so that only those
        fail that fail alone."""

        def stop_if_abandoned(*_: object) -> None:
            if all(waiting.future.done() for waiting in batch):
                raise Abandoned

        try:
            stop_if_abandoned()
            return self.engine.run([waiting.request for waiting in batch], stop_if_abandoned)
        except Abandoned as error:
            return [error] * len(batch)
        except BaseException as error:  # also what is no Exception, such as a panic of a native library
            if len(batch) == 1:
                return [as_error(error)]
            return [outcome for waiting in batch for outcome in self.run([waiting])]


def closed() -> MRCError:
    return MRCError("the AsyncEngine is closed; ask for edits inside its `async with`")
