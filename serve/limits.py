"""What is refused before a body is parsed: a wrong key or type, too many bytes, no room, too many seconds."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Refused, answer
from .service import Service

EDITS = "/v1/images/edits"
OPEN = frozenset({"/", "/page.css", "/page.js", "/health", "/health/ready", "/openapi.json"})  # need no key
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
JSON, FORM = "application/json", "multipart/form-data"
QUEUE_FULL = "as many requests wait as this server lets wait; ask again later"
PACE, LONGEST = 0.02, 1.0  # seconds between refusals for want of room, and that one is held back at most


class Limits:
    """ASGI middleware. For an edit, `request.state.admission` is its seat until it is in the engine's queue."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            check_caller(self.service, scope["path"], headers)
            if (scope["method"], scope["path"]) != ("POST", EDITS):
                await self.app(scope, receive, send)
                return
            check_length(self.service, headers)
            check_type(headers)
            await check_room(self.service, self.service.reading + 1)
        except Refused as error:
            scope["state"]["facts"]["error"] = error.code
            await answer(error)(scope, receive, send)
            return
        admission = scope["state"]["admission"] = Admission(self.service)
        try:
            await self.app(scope, Body(self.service, receive).receive, send)
        finally:
            admission.release()


def check_caller(service: Service, path: str, headers: dict[str, str]) -> None:
    """Ask for a key; where there are none, refuse what a page of another host makes a browser send."""
    if service.keys:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if path not in OPEN and not (scheme.lower() == "bearer" and service.knows(key.strip())):
            raise Refused("invalid_api_key", "the API key is missing or wrong; send Authorization: Bearer KEY")
        return
    try:
        host, origin = urlsplit(f"//{headers.get('host', '')}"), urlsplit(headers.get("origin", ""))
    except ValueError:
        raise Refused("forbidden", "Host or Origin is no address; send what the address bar shows") from None
    if host.hostname not in LOOPBACK:
        raise Refused("forbidden", "this server has no keys and answers to 127.0.0.1, localhost and ::1 alone")
    if "origin" in headers and origin.netloc != host.netloc:  # a sandboxed frame sends null
        raise Refused("forbidden", "this server has no keys and answers to no page of another host")


def check_open(service: Service) -> None:
    if not service.open:
        raise Refused("shutting_down", "the server stops, or has failed; ask another one, or again later")


def type_of(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_type(headers: Mapping[str, str]) -> None:
    if type_of(headers) not in (JSON, FORM):
        raise Refused("unsupported_media_type", f"send {FORM} or {JSON}")


def check_length(service: Service, headers: Mapping[str, str]) -> None:
    if int(headers.get("content-length", 0)) > service.options.max_bytes:  # the protocol has seen that it is a number
        raise too_large(service)


async def check_room(service: Service, requests: int) -> None:
    """Refuse what has no room, one after the other: clients that ask again at once would take the edits' time."""
    check_open(service)
    if not service.serving.room(requests):
        now = asyncio.get_running_loop().time()
        turn = max(now, service.turn)
        service.turn = min(turn + PACE, now + LONGEST)
        await asyncio.sleep(turn - now)
        raise Refused("queue_full", QUEUE_FULL)


def too_large(service: Service) -> Refused:
    return Refused(
        "request_too_large", f"the body has more than {service.options.max_bytes:,} bytes; send a smaller one"
    )


class Admission:
    """A seat of one request among those that may wait, from its headers until it is in the engine's queue."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.held = True
        service.reading += 1

    def release(self) -> None:
        if self.held:
            self.held = False
            self.service.reading -= 1


class Body:
    """The body of one request, within its bytes and seconds."""

    def __init__(self, service: Service, receive: Receive) -> None:
        self.service = service
        self.inner = receive
        self.deadline = asyncio.get_running_loop().time() + service.options.read_seconds
        self.bytes = 0
        self.whole = False

    async def receive(self) -> Message:
        if self.whole:  # what comes now is the end of the connection
            return await self.inner()
        with self.refusing():
            async with asyncio.timeout_at(self.deadline) as limit:
                self.service.readers.add(limit)
                try:
                    message = await self.inner()
                finally:
                    self.service.readers.discard(limit)
        self.bytes += len(message.get("body", b""))
        if self.bytes > self.service.options.max_bytes:
            raise too_large(self.service)
        self.whole = not message.get("more_body", False)
        return message

    @contextmanager
    def refusing(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            check_open(self.service)
            seconds = self.service.options.read_seconds
            raise Refused(
                "request_timeout", f"the body did not come within {seconds:g} s; send a smaller image"
            ) from None
