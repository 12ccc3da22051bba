"""Child processes, one a variant: each has its own memory and loads only its own runtime."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from mrc_edit.core.errors import MRCError

PATIENCE = 10  # seconds that a child has to end by itself

Respond = Callable[..., Any]
Prepare = Callable[..., tuple[Any, Respond | None]]


class Child:
    """A process that prepares once and then answers requests. Use `child`."""

    def __init__(self, name: str, prepare: Prepare, *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, self.other = context.Pipe()
        # not a daemon, which may start no processes: a training run loads its data in some
        self.process = context.Process(target=serve, args=(self.other, prepare, arguments))

    def start(self) -> None:
        self.process.start()
        self.other.close()

    def receive(self) -> Any:
        """The next answer; the first is what `prepare` reported.

        Raises:
            MRCError: raised in the child, or the child died.
        """
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise MRCError(f"the process of {self.name} died; see its message above") from None
        if isinstance(answer, MRCError):
            raise answer
        return answer

    def request(self, **arguments: object) -> Any:
        """What the child's `respond(**arguments)` returns."""
        self.pipe.send(arguments)
        return self.receive()

    def close(self) -> None:
        """Wait until the child ends, as it does when its pipe closes."""
        self.pipe.close()
        self.process.join(PATIENCE)

    def kill(self) -> None:
        if self.process.pid is not None:
            self.process.kill()
            self.process.join()


@contextmanager
def child(name: str, prepare: Prepare, *arguments: object) -> Iterator[Child]:
    """A child process that ends with the block, also after an error.

    Args:
        name: for messages.
        prepare: a module's function; the child calls it with `arguments`. It returns a report and a function
            that answers requests, or None if there will be none.
    """
    process = Child(name, prepare, *arguments)
    try:
        process.start()
        yield process
        process.close()
    finally:
        process.kill()


def serve(pipe: Connection, prepare: Prepare, arguments: tuple) -> None:
    """Body of a child process. It ends when its parent is gone, since the pipe then breaks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its children
    try:
        report, respond = prepare(*arguments)
        pipe.send(report)
        while respond:
            pipe.send(respond(**pipe.recv()))
    except MRCError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):
        pass
