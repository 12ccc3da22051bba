"""Errors as a client sees them: each is `{"error": {"message", "type", "param", "code"}}`."""

from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..core.errors import MRCError
from ..engine.safety import UnsafeEdit
from ..engine.waiting import Closed, QueueFull, TimedOut

CLIENT_GONE = 499  # as nginx writes it in its log; nobody reads the answer
RETRY = {"Retry-After": "1"}
PARAMETERS = {"instruction": "prompt", "num_images_per_prompt": "n"}  # their names over HTTP


@dataclass(frozen=True)
class Kind:
    """Status, type and headers of the errors of one code."""

    status: int
    type: str = "invalid_request_error"
    headers: dict[str, str] = field(default_factory=dict)


KINDS = {
    "invalid_image": Kind(400),
    "invalid_value": Kind(400),
    "invalid_body": Kind(400),
    "missing_required_parameter": Kind(400),
    "unknown_parameter": Kind(400),
    "unsupported_parameter": Kind(400),
    "content_policy_violation": Kind(400),
    "invalid_api_key": Kind(401, "authentication_error", {"WWW-Authenticate": "Bearer"}),
    "forbidden": Kind(403, "permission_error"),
    "not_found": Kind(404),
    "model_not_found": Kind(404),
    "method_not_allowed": Kind(405),
    "request_timeout": Kind(408),
    "request_too_large": Kind(413),
    "unsupported_media_type": Kind(415),
    "queue_full": Kind(429, "rate_limit_error", RETRY),
    "internal_error": Kind(500, "server_error"),
    "shutting_down": Kind(503, "server_error", RETRY),
    "timeout": Kind(504, "server_error", {"x-should-retry": "false"}),  # the client would ask for the same again, twice
}
BY_TYPE: tuple[tuple[type[MRCError], str], ...] = (
    (QueueFull, "queue_full"),
    (Closed, "shutting_down"),
    (TimedOut, "timeout"),
    (UnsafeEdit, "content_policy_violation"),
)
BY_STATUS = {404: "not_found", 405: "method_not_allowed"}  # of the errors that the router raises


class Refused(MRCError):
    """A request that is answered with an error of this code.

    Attributes:
        code: one of `KINDS`.
    """

    def __init__(self, code: str, message: str, argument: str = "") -> None:
        super().__init__(message, argument=argument)
        self.code = code


def code_of(error: MRCError) -> str:
    """The code of any error of ours. One that names no argument is the server's own."""
    if isinstance(error, Refused):
        return error.code
    for kind, code in BY_TYPE:
        if isinstance(error, kind):
            return code
    if error.argument == "image":
        return "invalid_image"
    return "invalid_value" if error.argument else "internal_error"


def describe(error: MRCError) -> dict:
    """The body of the answer."""
    code = code_of(error)
    param = PARAMETERS.get(error.argument, error.argument) or None
    return {"error": {"message": str(error), "type": KINDS[code].type, "param": param, "code": code}}


def answer(error: MRCError) -> JSONResponse:
    kind = KINDS[code_of(error)]
    return JSONResponse(describe(error), kind.status, kind.headers)


def note(request: Request, error: MRCError) -> JSONResponse:
    """The answer; its code goes into the log."""
    request.state.facts["error"] = code_of(error)
    return answer(error)


def add_handlers(app: FastAPI) -> None:
    """Answer whatever a route raises in the one form."""

    @app.exception_handler(MRCError)
    async def refuse(request: Request, error: MRCError) -> Response:
        return note(request, error)

    @app.exception_handler(HTTPException)
    async def refuse_by_status(request: Request, error: HTTPException) -> Response:
        code = BY_STATUS.get(error.status_code, "invalid_body")
        response = note(request, Refused(code, f"{error.detail}; {request.method} {request.url.path}"))
        response.headers.update(error.headers or {})  # such as Allow
        return response

    @app.exception_handler(ClientDisconnect)
    async def forget(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_GONE)
