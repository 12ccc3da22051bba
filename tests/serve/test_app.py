"""The application in this process, over a queue that does as a test says."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mrc_edit.serve.app import make_app
from mrc_edit.serve.metrics import Metrics
from mrc_edit.serve.service import Options, Service, describe

EDITS = "/v1/images/edits"
OPTIONS = Options(max_bytes=2_000_000, max_pixels=1_000_000, read_seconds=60, timeout=60, drain=0)


@pytest.fixture(scope="session")
def model(mini):
    return describe(mini, "mini", "exact", metadata=False)


@pytest.fixture
def make_service(model):
    """`make_service(model={}, options={}, **serving)`: attributes of each in place of the usual ones."""

    async def check(_):
        pass

    def make(model=model, options=OPTIONS, **serving):
        usual = {"open": True, "max_waiting": 8, "room": lambda _: True, "load": lambda: (0, 0), "check": check}
        return Service(model, SimpleNamespace(**usual | serving), options, [], Metrics(lambda: (0, 0)))

    return make


@pytest.fixture
def ask(as_form, picture):
    """`ask(service, method, path, **fields)`: status, headers and body of the answer, and what the application raised.

    A client that goes does so when it has sent its body.
    """

    def ask(service, method="POST", path=EDITS, goes=False, **fields):
        body, kind = as_form({"prompt": "make it sepia"} | fields, picture)
        headers = {"host": "localhost", "content-type": kind, "content-length": str(len(body))}
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("localhost", 80), "root_path": ""}
        sent, coming = [], [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if coming:
                return coming.pop()
            if not goes:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        async def run():
            async with asyncio.timeout(20):
                try:
                    await make_app(service)(scope, receive, send)
                except ZeroDivisionError as error:
                    return error

        raised = asyncio.run(run())
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent), raised

    return ask


def test_a_fault_of_the_server_has_its_number_in_answer_and_log(make_service, ask, capsys):
    async def edit(*_, **__):
        raise ZeroDivisionError

    status, headers, body, raised = ask(make_service(edit=edit))
    assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert isinstance(raised, ZeroDivisionError)  # uvicorn prints where
    line = json.loads(capsys.readouterr().out)
    assert headers["x-request-id"] == line["id"] and (line["status"], line["error"]) == (500, "internal_error")


def test_a_queue_that_has_ended_takes_nothing_and_says_so(make_service, ask):
    """It is neither ready nor full: a client that asks again shortly would ask for nothing."""
    ended = make_service(open=False, room=lambda _: False)
    status, _, body, _ = ask(ended)
    assert (status, json.loads(body)["error"]["code"]) == (503, "shutting_down")
    assert ask(ended, "GET", "/health/ready")[0] == 503 and ask(make_service(), "GET", "/health/ready")[0] == 200


def test_a_stream_is_refused_before_it_begins(make_service, ask, model):
    status, _, body, _ = ask(make_service(replace(model, tiers=["exact"])), stream="true", tier="fast")
    assert (status, json.loads(body)["error"]["param"]) == (400, "tier")


@pytest.mark.parametrize(("goes", "status"), [(True, 499), (False, 504)])
def test_the_check_of_a_stream_ends_with_the_client_or_the_time(make_service, ask, goes, status):
    ended = []

    async def check(_):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    service = make_service(check=check, options=replace(OPTIONS, timeout=60 if goes else 0.1))
    assert ask(service, stream="true", goes=goes)[0] == status and ended


def test_more_edits_than_may_wait_are_no_matter_of_time(make_service, ask):
    status, _, body, _ = ask(make_service(max_waiting=2), n=3)
    error = json.loads(body)["error"]
    assert (status, error["code"], error["param"]) == (400, "invalid_value", "n")
