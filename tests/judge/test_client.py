"""A whole request is bounded in time and size, whatever the server sends."""

import gzip
import resource
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.judge.client import LARGEST, decompressed, event_loop
from mrc_edit.judge.endpoint import ATTEMPTS, Endpoint, NoReply
from mrc_edit.judge.spending import Spending

MESSAGES = [{"role": "user", "content": "?"}]
TIMEOUT = 1.0  # of a request
OK = b"HTTP/1.1 200 OK\r\n"
COMPLETION = b'{"choices": [{"message": {"content": "said"}}]}'


@contextmanager
def serving(send):
    """The URL of a server that passes each connection, once the request is in, to `send`; and its requests."""
    listener, requests = socket.create_server(("127.0.0.1", 0)), []

    def answer(connection):
        with connection:
            requests.append(connection.recv(1 << 16))
            with suppress(OSError):  # the client went away
                send(connection)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):  # closing on unread bytes would take back what was sent
                    pass

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", requests
    finally:
        listener.close()


def bomb(megabytes=200):
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(megabytes)) + packer.flush()


def trickle(start):
    def send(connection):
        connection.sendall(start)
        for _ in range(200):
            connection.sendall(b"a")
            time.sleep(0.1)

    return send


def ask(url, timeout=TIMEOUT):
    return Endpoint("m", url, Spending(), timeout, backoff=0.001).ask(MESSAGES)


@pytest.mark.parametrize(
    "start",
    [b"", OK + b"X: ", OK + b"Content-Length: 9999\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 9999\r\n\r\n",
     b"HTTP/1.1 401 No\r\nContent-Length: 9999\r\n\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"],
)  # fmt: skip
def test_the_timeout_is_for_the_whole_request(start):
    """Whatever trickles: status line, headers, body, an error's body; each byte comes well within the time-out."""
    with serving(trickle(start)) as (url, _):
        started = time.monotonic()
        with pytest.raises(MRCError):
            ask(url, 0.3)
        assert time.monotonic() - started < ATTEMPTS * 0.3 + 3


@pytest.mark.parametrize("status", [b"200 OK", b"500 No"])
@pytest.mark.parametrize("compressed", [None, bomb()])
def test_a_reply_of_any_size_takes_bounded_memory(status, compressed):
    headers = b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n"

    def send(connection):
        if compressed:
            connection.sendall(headers + b"Content-Encoding: gzip\r\n\r\n" + compressed)
        else:
            connection.sendall(headers + b"\r\n")
            for _ in range(200):
                connection.sendall(b" " * (1 << 20))

    with serving(send) as (url, _):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(NoReply, match="larger than 1,048,576 bytes"):
            ask(url, 20)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KB


@pytest.mark.parametrize("encoding", [b"identity", b"gzip"])
def test_a_reply_may_be_compressed(encoding):
    body = gzip.compress(COMPLETION) if encoding == b"gzip" else COMPLETION
    reply = OK + b"Content-Encoding: " + encoding + b"\r\nConnection: close\r\n\r\n" + body
    with serving(lambda connection: connection.sendall(reply)) as (url, requests):
        assert ask(url).text == "said"
    assert b"accept-encoding: identity" in requests[0].lower()


def test_other_compressions_are_refused():
    assert decompressed(gzip.compress(b"a" * LARGEST), "gzip") == b"a" * LARGEST
    for body, encoding in ((zlib.compress(b"a"), "deflate"), (b"a", "br"), (b"a", "gzip"), (b"", "gzip, gzip")):
        with pytest.raises(MRCError, match=r"compressed|damaged"):
            decompressed(body, encoding)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status):
    with serving(lambda connection: None) as (elsewhere, visits):
        reply = f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere}/chat/completions\r\nContent-Length: 0\r\n\r\n"
        with serving(lambda connection: connection.sendall(reply.encode())) as (url, requests):
            with pytest.raises(MRCError, match=rf"redirects .HTTP {status}.*--base-url"):
                ask(url)
            assert len(requests) == 1 and not visits


def test_threads_may_ask_at_once_from_the_start():
    reply = OK + b"Connection: close\r\n\r\n" + COMPLETION
    with serving(lambda connection: connection.sendall(reply)) as (url, _):
        for _ in range(5):
            endpoint = Endpoint("m", url, Spending(), timeout=10, backoff=0.001)
            event_loop.cache_clear()
            with ThreadPoolExecutor(8) as pool:
                replies = list(pool.map(endpoint.ask, [MESSAGES] * 8))
            assert all(reply.text == "said" for reply in replies)
