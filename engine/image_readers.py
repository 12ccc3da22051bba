"""Threads that read images, which may be stuck in a file for ever."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

Job = tuple[Future, Callable[[], Any]] | None  # None ends a thread


class Readers(Executor):
    """As a ThreadPoolExecutor, but a process that ends does not wait for its threads."""

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        for _ in range(count):
            Thread(target=work, args=(self.jobs,), name=name, daemon=True).start()

    def submit(self, function: Callable, /, *args: Any, **options: Any) -> Future:
        future: Future = Future()
        self.jobs.put((future, partial(function, *args, **options)))
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """End the threads, each when it is free; this waits for none."""
        for _ in range(self.count):
            self.jobs.put(None)


def work(jobs: SimpleQueue[Job]) -> None:
    while run(jobs.get()):
        pass  # nothing of a job stays here


def run(job: Job) -> bool:
    """Do a job; False for the one that ends the thread."""
    if job is None:
        return False
    future, function = job
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)
    return True
