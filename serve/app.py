"""The routes of a server."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from .. import __version__
from ..engine.sampling import SAMPLERS
from .document import document_of, edit_operation
from .edits import create_edit
from .errors import add_handlers
from .limits import EDITS, Limits
from .log import Log
from .metrics import CONTENT_TYPE
from .service import Service

HERE = Path(__file__).parent
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser may send Origin: null, which is refused
    "Cache-Control": "no-cache",
}


def make_app(service: Service) -> FastAPI:
    """The application; `service.serving` is open as long as it runs."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.serving:
            yield

    app = FastAPI(title="mrc-serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.created = int(time.time())
    add_handlers(app)
    app.post(EDITS, openapi_extra=edit_operation(), response_model=None)(create_edit)
    app.get("/v1/models")(models)
    app.get("/health")(health)
    app.get("/health/ready", responses={503: {"description": "The server stops, or its queue has failed."}})(ready)
    app.get("/metrics", response_class=Response)(metrics)
    for path in PAGE:
        app.get(path, include_in_schema=False)(page)
    app.openapi = lambda: document_of(app)  # type: ignore[method-assign]
    routes = frozenset({EDITS, "/v1/models", "/health", "/health/ready", "/metrics", "/openapi.json", *PAGE})
    app.add_middleware(Limits, service=service)
    app.add_middleware(Log, service=service, routes=routes)
    return app


async def models(request: Request) -> dict:
    """The one model, with what the page needs to know of it."""
    service: Service = request.app.state.service
    model, geometry = service.model, service.model.geometry
    own = {
        "defaults": asdict(model.defaults),
        "rewards": geometry.rewards,
        "resolution": geometry.resolution,
        "multiple": geometry.multiple,
        "schedulers": list(SAMPLERS),
        "tiers": model.tiers,
        "max_bytes": service.options.max_bytes,
    }
    common = {"id": model.name, "object": "model", "created": request.app.state.created, "owned_by": "mrc-edit"}
    return {"object": "list", "data": [common | own]}


async def health() -> dict:
    """The process answers."""
    return {"status": "ok"}


async def ready(request: Request) -> JSONResponse:
    """Whether new edits are taken."""
    service: Service = request.app.state.service
    status = "ok" if service.open else "draining" if service.draining else "failed"
    return JSONResponse({"status": status}, 200 if service.open else 503)


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(request.app.state.service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def page(request: Request) -> FileResponse:
    name, kind = PAGE[request.url.path]
    return FileResponse(HERE / name, media_type=kind, headers=PAGE_HEADERS)
