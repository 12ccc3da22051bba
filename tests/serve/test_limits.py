"""What is refused before a body is read, and connections that do not get on."""

import asyncio
import http.client
import json
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.serve import command, limits
from mrc_edit.serve.errors import Refused
from mrc_edit.serve.limits import Body, check_caller
from mrc_edit.serve.service import Service, read_keys


def open_socket(server):
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def headers(key, *lines):
    wanted = ("POST /v1/images/edits HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", *lines)
    return "\r\n".join(wanted).encode() + b"\r\n\r\n"


def answer(connection):
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        return response.status, json.loads(response.read())["error"]["code"]


def test_half_sent_headers_and_silence_end(server):
    with open_socket(server) as silent, open_socket(server) as half, open_socket(server) as used:
        half.sendall(b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\n")
        used.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = used.recv(65_536)
        while b"}" not in answer:  # headers and body may come apart
            answer += used.recv(65_536)
        assert b"200 OK" in answer
        used.sendall(b"GET /health HTTP/1.1\r\n")
        assert [connection.recv(65_536) for connection in (silent, half, used)] == [b""] * 3  # closed


def test_a_slow_body_is_told_so(server, key):
    with open_socket(server) as connection:
        connection.sendall(headers(key, "Content-Type: application/json", "Content-Length: 1000") + b"{")
        assert answer(connection) == (408, "request_timeout")


def test_a_length_is_refused_before_the_body(server, key):
    with open_socket(server) as connection:
        connection.sendall(headers(key, "Content-Length: 30000000"))
        assert answer(connection) == (413, "request_too_large")


def test_a_body_without_length_is_counted(server, key):
    with open_socket(server) as connection:
        connection.sendall(headers(key, "Content-Type: application/json", "Transfer-Encoding: chunked"))
        chunk = b"fffff\r\n" + b"0" * 0xFFFFF + b"\r\n"
        connection.sendall(chunk * 2)
        assert answer(connection) == (413, "request_too_large")


def test_thirty_megabytes(server):
    status, _, body = server.edit(b"0" * 30_000_000, prompt="x")
    assert (status, body["error"]["code"]) == (413, "request_too_large")


def test_half_sent_bodies_take_the_places_of_those_that_wait(server, key, picture):
    """As many as may wait; the next is refused without its body. What has no chance is told so, room or not."""
    slow = [open_socket(server) for _ in range(8)]
    for connection in slow:
        connection.sendall(headers(key, "Content-Type: application/json", "Content-Length: 1000"))
    end = time.monotonic() + 60
    with open_socket(server) as late:
        while True:
            late.sendall(headers(key, "Content-Type: application/json", "Content-Length: 2") + b"{}")
            if (code := answer(late)) == (429, "queue_full"):
                break
            assert code == (400, "missing_required_parameter") and time.monotonic() < end  # some were not read yet
    for lines, hopeless in (
        (("Content-Length: 30000000",), (413, "request_too_large")),
        (("Content-Length: 2", "Content-Type: text/plain"), (415, "unsupported_media_type")),
    ):
        with open_socket(server) as connection:
            connection.sendall(headers(key, *lines))
            assert answer(connection) == hopeless
    for connection in slow:
        connection.close()
    while server.edit(picture, prompt="make it snow")[0] == 429:
        assert time.monotonic() < end


def test_refusals_are_paced(monkeypatch):
    """One after the other, none held back longer than a client is told to wait; a pause lets the next go at once."""
    clock, slept = SimpleNamespace(time=lambda: clock.now, now=100.0), []
    service = Service(None, SimpleNamespace(room=lambda _: False, open=True), None, [], None)

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(limits.asyncio, "get_running_loop", lambda: clock)
    monkeypatch.setattr(limits.asyncio, "sleep", sleep)

    def refuse():
        with pytest.raises(Refused):
            limits.check_room(service, 1).send(None)

    for _ in range(200):
        refuse()
    np.testing.assert_allclose(slept[:4], [0, 0.02, 0.04, 0.06], atol=1e-9)
    assert max(slept) == pytest.approx(slept[-1]) == pytest.approx(1)
    clock.now += 2
    refuse()
    assert slept[-1] == 0


def caller(keys=(), **headers):
    service = SimpleNamespace(keys=list(keys), knows=lambda key: key in keys)
    check_caller(service, "/v1/images/edits", headers)


def test_without_keys_pages_of_other_hosts_are_refused():
    """Of the right host also, where a name of another one was made to lead here."""
    caller(host="127.0.0.1:8000")
    caller(host="[::1]:8000", origin="http://[::1]:8000")
    for wrong in (
        {"host": "localhost:8000", "origin": "https://example.org"},
        {"host": "localhost:8000", "origin": "http://localhost:9000"},
        {"host": "localhost:8000", "origin": "null"},  # of a sandboxed frame, on whatever host
        {"host": "localhost:8000", "origin": ""},
        {"host": "example.org:8000", "origin": "http://example.org:8000"},
        {"host": "[::1"},
        {},
    ):
        with pytest.raises(Refused) as error:
            caller(**wrong)
        assert error.value.code == "forbidden"
    caller(["k"], host="example.org", origin="https://example.org", authorization="Bearer k")


def test_a_stop_ends_the_reading(tmp_path):
    """A body that is on its way when the server drains is refused at once."""

    async def read():
        async def never():
            await asyncio.Event().wait()

        async def drain(_):
            pass

        options = SimpleNamespace(read_seconds=600, max_bytes=10, drain=0)
        service = Service(None, SimpleNamespace(drain=drain), options, [], None)
        body = asyncio.create_task(Body(service, never).receive())
        await asyncio.sleep(0)
        await service.drain(0)
        with pytest.raises(Refused) as error:
            await asyncio.wait_for(body, 60)
        return error.value.code

    assert asyncio.run(read()) == "shutting_down"


def test_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("one\n\n two \n")
    assert read_keys({}) == [] and len(read_keys({"MRC_API_KEYS": "a,b"})) == 2
    assert read_keys({"MRC_API_KEYS_FILE": str(path)}) == read_keys({"MRC_API_KEYS": "one,two"})
    for wrong in (
        {"MRC_API_KEYS": " , "},
        {"MRC_API_KEYS_FILE": str(tmp_path)},
        {"MRC_API_KEYS": "a", "MRC_API_KEYS_FILE": "b"},
        {"MRC_API_KEYS": "good,schlüssel"},  # no header carries it, so it would match nobody's
        {"MRC_API_KEYS": "good,tab\tinside"},
    ):
        with pytest.raises(MRCError, match="MRC_API_KEYS") as error:
            read_keys(wrong)
        assert "schl" not in str(error.value) and "inside" not in str(error.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_are_served_with_keys_only(host):
    command.check_host(host, has_keys=True)
    for local in ("127.0.0.1", "localhost", "::1"):
        command.check_host(local, has_keys=False)
    with pytest.raises(MRCError, match="MRC_API_KEYS"):
        command.check_host(host, has_keys=False)


def test_a_port_that_is_taken_is_told_before_the_model_is_opened(monkeypatch):
    monkeypatch.setattr(command, "opened", lambda args: pytest.fail("opened"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MRCError, match=f"--port {port} of 127.0.0.1"):
            command.serve(command.arguments().parse_args(["mini", "--port", str(port)]))


@pytest.mark.parametrize(
    "flags",
    [("--port", "70000"), ("--max-batch", "0"), ("--drain", "-1"), ("--timeout", "nan"), ("--read-timeout", "0")],
)
def test_flags_out_of_range(flags):
    args = command.arguments().parse_args(["mini", *flags])
    with pytest.raises(MRCError, match=flags[0]):
        command.check_options(args)
