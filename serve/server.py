"""uvicorn, with a time limit for headers and a stop that lets running edits finish."""

import asyncio
import logging
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..core.errors import MRCError
from .app import make_app
from .service import Service

GRACE = 5  # seconds for answers to be sent when the edits are done


class Server(uvicorn.Server):
    """On SIGTERM and Ctrl-C it drains, while it still answers. A second one refuses what runs, too."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.patience = [0.0, service.options.drain]  # seconds for what runs, of the next signal last
        self.drains: list[asyncio.Task] = []

    async def startup(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"{self.service.model.name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.started and self.patience:
            self._captured_signals.append(sig)
            self.loop.call_soon_threadsafe(self.drain, self.patience.pop())
        else:
            super().handle_exit(sig, frame)

    def drain(self, seconds: float) -> None:
        self.drains.append(asyncio.create_task(self.service.drain(seconds)))
        self.drains[-1].add_done_callback(self.exit)

    def exit(self, _: asyncio.Task) -> None:
        self.should_exit = True


def protocol(read_seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 whose requests must have come within `read_seconds`, headers as well as what nobody reads of a body."""

    class Timed(H11Protocol):
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.watch(True)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            self.watch(begun or self.conn.their_state is h11.SEND_BODY)

        def connection_lost(self, exc: Exception | None) -> None:
            self.watch(False)
            super().connection_lost(exc)

        def watch(self, coming: bool) -> None:
            if not coming and self.timer is not None:
                self.timer.cancel()
                self.timer = None
            elif coming and self.timer is None:
                self.timer = self.loop.call_later(read_seconds, self.too_late)

        def too_late(self) -> None:
            self.timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()
            else:  # the application answers to a slow body; look again whether the rest comes
                self.watch(True)

    return Timed


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets on all addresses of a host, for the block. Nothing listens yet.

    Raises:
        MRCError: another program has the port, or the host is not this machine.
    """
    with ExitStack() as stack:
        sockets = []
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                sockets.append(stack.enter_context(socket.socket(family, kind, protocol)))
                sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last server's may linger
                if family == socket.AF_INET6:
                    sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sockets[-1].bind(address)
        except (OSError, UnicodeError) as error:
            raise MRCError(
                f"--port {port} of {host} cannot be served ({error}); give another --port or --host"
            ) from None
        yield sockets


def run(service: Service, sockets: list[socket.socket]) -> None:
    """Serve on what is bound, until a signal."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of a client's image; what matters to it is in its answer
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # of a client's body: our line tells it
    config = uvicorn.Config(
        make_app(service),
        http=protocol(service.options.read_seconds),
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    Server(config, service).run(sockets)
