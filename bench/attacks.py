"""Requests that no server should suffer from, and what each must get: the right status, within its time."""

import contextlib
import http.client
import io
import json
import socket
import struct
import time
import zlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

EDITS = "/v1/images/edits"
HEAD = f"POST {EDITS} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CLOSED = "closed"
MARGIN = 5  # seconds that an answer may take on a machine that is busy
PAUSE = 0.02  # seconds before a client that was refused asks again
TRIES = 10  # seconds in which it asks again; by then a flood has kept it out
REFUSED = "429"


@dataclass(frozen=True)
class Outcome:
    """The first answer that was no refusal for want of room; 429 if every one was.

    Attributes:
        seconds: that the slowest answer took.
        tries: requests until then.
    """

    answer: str
    seconds: float
    tries: int


@dataclass(frozen=True)
class Attack:
    """What is sent, and what must come.

    Attributes:
        sent: the bytes.
        answer: the status, or "closed".
        needs_room: 429 is right, too, while none is free.
        waits: the server waits for the rest of it, until its time is over.
    """

    sent: Callable[[], bytes]
    answer: str
    needs_room: bool = False
    waits: bool = False

    def is_right(self, outcome: Outcome, read_seconds: float) -> bool:
        answers = {self.answer, REFUSED} if self.needs_room else {self.answer}
        return outcome.answer in answers and outcome.seconds <= self.limit(read_seconds)

    def limit(self, read_seconds: float) -> float:
        """Seconds within which the answer must come."""
        return MARGIN + (read_seconds if self.waits else 0)


def request(body: bytes, kind: str = "application/json", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"{HEAD}Content-Type: {kind}\r\nContent-Length: {size}\r\n\r\n".encode() + body


def with_image(data: bytes) -> bytes:
    url = "data:image/png;base64," + b64encode(data).decode()
    return request(json.dumps({"prompt": "make it snow", "images": [{"image_url": url}]}).encode())


def truncated() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "JPEG")
    return with_image(file.getvalue()[:-200])


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 30,000 × 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    return with_image(b"\x89PNG\r\n\x1a\n" + data)


ATTACKS = {
    "half of the headers": Attack(HEAD.encode, CLOSED, waits=True),
    "30 MB": Attack(lambda: request(bytes(30_000_000)), "413"),
    "a wrong type": Attack(lambda: request(b"hello", "text/plain"), "415"),
    "half of the body": Attack(lambda: request(b"{", length=1000), "408", needs_room=True, waits=True),
    "a truncated JPEG": Attack(truncated, "400", needs_room=True),
    "a bomb": Attack(bomb, "400", needs_room=True),
}


def attack(name: str, address: str, read_seconds: float) -> Outcome:
    """Send one again and again, as a client does that gets 429, until there is room for it."""
    sent, tries, slowest = ATTACKS[name].sent(), 0, 0.0
    end = time.perf_counter() + TRIES
    while True:
        tries += 1
        start = time.perf_counter()
        answer = answer_to(sent, address, 2 * ATTACKS[name].limit(read_seconds))
        slowest = max(slowest, time.perf_counter() - start)
        if answer != REFUSED or time.perf_counter() > end:
            return Outcome(answer, slowest, tries)
        time.sleep(PAUSE)


def answer_to(sent: bytes, address: str, seconds: float) -> str:
    """The status, or how the connection ended."""
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=seconds) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read what it has refused
                connection.sendall(sent)
            with http.client.HTTPResponse(connection) as response:
                response.begin()
                return str(response.status)
    except TimeoutError:
        return "nothing"
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return CLOSED
