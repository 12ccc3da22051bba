"""One JSON line a request, without prompt or picture; its request id, and its place in the metrics."""

import json
import re
import secrets
import sys
import time
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.errors import MRCError
from .errors import CLIENT_GONE, answer, code_of
from .service import Service

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
OTHER = "other"  # route of a path that is none, so that nobody can fill the metrics with names


class Log:
    """ASGI middleware, the outermost. What a route adds to `request.state.facts` is logged too."""

    def __init__(self, app: ASGIApp, service: Service, routes: frozenset[str]) -> None:
        self.app = app
        self.service = service
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        facts: dict[str, object] = {}
        scope.setdefault("state", {})["facts"] = facts
        number = request_id(scope)
        status, sent = CLIENT_GONE, 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:  # uvicorn prints where; what has begun can only end
            failure = MRCError("the server failed; its log says why")
            facts["error"] = code_of(failure)
            if status == CLIENT_GONE:
                await answer(failure)(scope, receive, send_with_id)
            status = 500
            raise
        finally:
            seconds = time.perf_counter() - began
            route = scope["path"] if scope["path"] in self.routes else OTHER
            self.service.metrics.requests.labels(route, status).inc()
            self.service.metrics.seconds.labels(route).observe(seconds)
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": number,
                "method": scope["method"],
                "route": route,
                "status": status,
                "seconds": round(seconds, 4),
                "sent_bytes": sent,
            }
            print(json.dumps(line | facts), file=sys.stdout, flush=True)


def request_id(scope: Scope) -> str:
    """The client's own, where it is harmless, or a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
