"""`AsyncEngine`: many requests at once over one engine (docs/serving.md).

All state lives in the event loop; one worker thread runs the engine, tells requests of their steps and asks whether
anyone still waits for those of its batch.
"""

import asyncio
import logging
import math
import numbers
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Unpack

import numpy as np

from ..core.errors import MRCError
from .engine import EditResult, Engine, plan_of
from .failures import as_error
from .image_readers import Readers
from .images import ImageLike
from .notes import collecting
from .request import Checked, EditOptions, EditRequest, check
from .text import tokenize
from .tiers import check_tier, make_tier
from .waiting import Abandoned, OnStep, QueueFull, TimedOut, Waiting, closed, next_batch, own_places

LOG = logging.getLogger(__name__)
READERS = 4  # threads that read images; one that is stuck in a file must not be one of asyncio's own


class AsyncEngine:
    """A bounded queue before an engine, which nothing else may use meanwhile.

        async with AsyncEngine(engine, max_batch=8) as serving:
            result = await serving.edit(image, "make it snow", seed=1, timeout=60)

    When the engine is free it takes the oldest request, and the oldest others of the same size, steps, sampler,
    guidance, tier and output type.

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
        self.open = False
        self.worker: asyncio.Task | None = None

    async def __aenter__(self) -> "AsyncEngine":
        self.ready = asyncio.Event()  # a request waits, or the worker must end
        self.thread = ThreadPoolExecutor(1, "mrc-engine")
        self.thread.submit(int)  # starts it now: an error here stops nobody
        self.readers = Readers(READERS, "mrc-image")
        self.open = True
        self.worker = asyncio.create_task(self.serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Refuse what waits and stop what runs, within a step."""
        self.close()
        try:
            if self.worker is not None:
                await asyncio.wait([self.worker])
        finally:
            self.thread.shutdown()
            self.readers.shutdown()

    def close(self) -> None:
        """Refuse what waits and what runs, and all that comes."""
        self.refuse()
        for waiting in self.running:
            if not waiting.future.done():
                waiting.future.set_exception(closed())

    def refuse(self) -> None:
        """Refuse what waits, and all that comes."""
        self.open = False
        for waiting in self.waiting:
            if not waiting.future.done():
                waiting.future.set_exception(closed())
        self.waiting = []
        self.ready.set()

    async def drain(self, seconds: float) -> None:
        """Refuse what waits and all that comes, and finish what runs. What runs after `seconds` is refused too."""
        self.refuse()
        if self.worker is not None:
            await asyncio.wait([self.worker], timeout=seconds)
        self.close()

    def room(self, requests: int = 1) -> bool:
        """Whether so many more requests may wait now; what is refused so costs no reading."""
        return self.open and self.checking + len(self.waiting) + requests <= self.max_waiting

    def load(self) -> tuple[int, int]:
        """How many requests wait, and how many of those that are edited have anyone who waits for them."""
        return len(self.waiting), sum(running.listens for running in self.running)

    async def edit(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        instruction: str | Sequence[str] | None = None,
        *,
        timeout: float | None = None,
        tier: str | None = None,
        on_step: OnStep | None = None,
        **options: Unpack[EditOptions],
    ) -> EditResult:
        """Edit one image or a list of them, in a batch with others that are asked for meanwhile.

        A request that is cancelled or times out is forgotten at once, and changes no other.

        Args:
            timeout: seconds from this call to the result; None for no limit.
            tier: as for `Engine.from_pretrained`; None for the engine's own.
            on_step: called as `f(step, steps, latents)` after each step, in the engine's thread, with a copy of the
                latents of this request `[B, Z, h, w]`; images of several sizes go through all steps size after size.
                A batch that fails begins anew. What it raises ends this request.
            image, instruction, options: the fields of `EditRequest`; at most `max_batch` edits. A generator draws
                for one request at a time.

        Returns:
            What `Engine.edit` returns for the request alone; the timings and `batch_size` are those of its batch.

        Raises:
            MRCError: as `Engine.edit`; `QueueFull`, `TimedOut` and `Closed` are kinds of it.
        """
        since = time.perf_counter()
        if timeout is not None and (not isinstance(timeout, numbers.Real) or not 0 < timeout < math.inf):
            raise MRCError(f"timeout is {timeout!r}; give seconds, or None for no limit")
        request = EditRequest(image, instruction, **options)
        chosen = self.engine.tier if tier is None else check_tier(tier, make_tier(tier), self.engine.backend)
        if not self.open:
            raise closed()
        if not self.room():
            raise QueueFull(f"{self.max_waiting} requests wait already; ask again later, or raise max_waiting")
        try:
            async with asyncio.timeout(timeout):
                future = asyncio.get_running_loop().create_future()
                checked, warnings = await self.check(request)
                waiting = Waiting(checked, future, chosen, on_step, since, warnings)
                self.waiting.append(waiting)
                self.ready.set()
                try:
                    return await waiting.future
                finally:
                    if waiting in self.waiting:
                        self.waiting.remove(waiting)
        except TimeoutError:
            raise TimedOut(f"the edit was not done within {timeout} s; give it more time or fewer steps") from None

    async def check(self, request: EditRequest) -> tuple[Checked, list[str]]:
        """Read and check in another thread; nothing that could fail a batch passes. Returns the warnings, too."""
        self.checking += 1
        try:
            loop = asyncio.get_running_loop()
            checked, warnings = await loop.run_in_executor(self.readers, self.read, request)
        finally:
            self.checking -= 1
        if (count := len(checked.edits)) > self.max_batch:
            raise MRCError(
                f"{count} edits in one request, and max_batch is {self.max_batch}; ask for fewer at once, or raise it",
                argument="image" if request.num_images_per_prompt == 1 else "num_images_per_prompt",
            )
        if not self.open:
            raise closed()
        return checked, warnings

    def read(self, request: EditRequest) -> tuple[Checked, list[str]]:
        """Check a request, in a reader's thread. Its texts are tokenized here, too: of those of a batch nobody could
        tell whose they are, and no client may see those of another."""
        if not self.open:
            raise closed()
        backend = self.engine.backend
        try:
            with collecting() as warnings:
                checked = check(backend, request)
                texts = plan_of(backend, checked.edits, checked.settings).encoded
                tokenize(backend.tokenizer, texts, backend.geometry)
            return checked, warnings
        except MRCError:
            raise
        except BaseException as error:
            raise as_error(error) from error

    async def serve(self) -> None:
        """Edit batch after batch until closed. Should it fail, the log says why, and nobody waits for ever."""
        try:
            while self.open:
                if self.waiting:
                    await self.serve_batch()
                else:
                    self.ready.clear()
                    await self.ready.wait()
        except Exception:
            LOG.exception("the queue has failed and takes no more requests")
        finally:
            self.close()

    async def serve_batch(self) -> None:
        """Edit the oldest request and others of its kind."""
        self.running = next_batch(self.waiting, self.max_batch)
        self.waiting = [waiting for waiting in self.waiting if waiting not in self.running]
        for waiting in self.running:
            waiting.waited = time.perf_counter() - waiting.since
        outcomes = await asyncio.get_running_loop().run_in_executor(self.thread, self.run, self.running)
        for waiting, outcome in zip(self.running, outcomes, strict=True):
            if waiting.future.done():
                continue
            if waiting.failure is not None:
                waiting.future.set_exception(waiting.failure)
            elif isinstance(outcome, Exception):
                waiting.future.set_exception(outcome)
            else:
                waiting.future.set_result(replace(outcome, waited=waiting.waited, warnings=waiting.warnings))
        self.running = []

    def run(self, batch: list[Waiting]) -> Sequence[EditResult | Exception]:
        """One pass, in the worker thread. A batch that fails is edited one by one, so that only those
        fail that fail alone."""
        engine = self.engine if batch[0].tier == self.engine.tier else Engine(self.engine.backend, batch[0].tier)
        steps, places = batch[0].request.settings.steps, own_places(batch)

        def stop_if_abandoned() -> None:
            if not any(waiting.listens for waiting in batch):
                raise Abandoned

        def after_step(_: Engine, step: int, __: float, values: dict[str, np.ndarray]) -> None:
            for waiting, rows in places[0]:
                waiting.tell(step, steps, values["latents"][rows])
            if step == steps - 1:
                del places[0]
            stop_if_abandoned()

        try:
            stop_if_abandoned()
            with collecting():  # `read` has told each request of its own
                return engine.run([waiting.request for waiting in batch], after_step)
        except Abandoned as error:
            return [error] * len(batch)
        except BaseException as error:  # also what is no Exception, such as a panic of a native library
            if len(batch) == 1:
                return [as_error(error)]
            return [outcome for waiting in batch for outcome in self.run([waiting])]
