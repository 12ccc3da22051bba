"""Items that worker processes load. An exception of a worker arrives with its traceback as its message: ours do not."""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

from ..core.errors import STOPS, MRCError, reason

Item = TypeVar("Item")


class Reported(Dataset[Item | MRCError]):
    """A data set in which an MRCError is the item instead of raised."""

    def __init__(self, items: Dataset[Item]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Item | MRCError:
        try:
            return self.items[index]
        except MRCError as error:
            return error


def load(items: Dataset[Item], numbers: Sequence[int], workers: int) -> Iterator[Item]:
    """The items of these numbers, loaded by `workers` processes, or by this one for 0.

    Raises:
        MRCError: an item raised it, or a worker was killed.
    """
    # at once: this draws from torch's generator, which a training step seeds before it takes its first item
    with killed_worker():
        loader = DataLoader(
            Reported(items), batch_size=None, sampler=numbers, num_workers=workers, worker_init_fn=end_when_stopped
        )
        stream = iter(loader)
    return raised(from_workers(stream))


def raised(items: Iterator[Item | MRCError]) -> Iterator[Item]:
    for item in items:
        if isinstance(item, MRCError):
            raise item
        yield item


def end_when_stopped(worker: int) -> None:
    """Let a worker end in peace when a terminal or a scheduler stops all processes of a command at once: PyTorch would
    raise its death as an error in the training process, which is just stopping itself.
    """
    for number in STOPS:
        signal.signal(number, lambda *_: os._exit(0))


def from_workers(loader: Iterable[Item]) -> Iterator[Item]:
    """What a `DataLoader` gives, with an MRCError for a worker that was killed."""
    with killed_worker():
        yield from loader


@contextmanager
def killed_worker() -> Iterator[None]:
    """Make one MRCError of a worker that was killed, mostly for want of memory. PyTorch's signal handler tells of it
    wherever this process then is.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MRCError(
            f"a process that loads data was killed ({reason(error)}); "
            "give fewer --workers, or free memory (in a container also shared memory, --shm-size)"
        ) from None
