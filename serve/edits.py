"""`POST /v1/images/edits`: from a request to its edits, whole or as a stream."""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL.PngImagePlugin import PngInfo
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ..engine import EditRequest, EditResult
from ..engine.finishing import Finishing
from ..engine.parameters import describe_request, text_of
from ..engine.request import EditOptions
from ..engine.sources import Source as Upload
from ..engine.waiting import TimedOut
from .bodies import read_body
from .errors import Refused
from .fields import Fields
from .images import Source, encode, source_of
from .limits import check_room
from .service import Service
from .stream import Sent, events

Value = TypeVar("Value")
SAME_NAME = (  # arguments of `Engine.edit` that are fields of a request
    "reward_scores", "reward_text", "reward_guidance", "reward_guidance_text", "negative_prompt",
    "num_inference_steps", "guidance_scale", "image_guidance_scale", "scheduler", "fit", "keep_size",
)  # fmt: skip


async def create_edit(request: Request) -> Response:
    """Edit one image."""
    service: Service = request.app.state.service
    fields, data = await read_body(request)
    check_fields(service, fields)
    geometry, most = service.model.geometry, service.options.max_pixels
    source = await asyncio.to_thread(source_of, data, fields, geometry, most)
    options = options_of(fields, source)
    seed = secrets.randbits(32) if fields.seed is None else fields.seed
    seeds = [(seed + i + 2**63) % 2**64 - 2**63 if seed < 0 else (seed + i) % 2**64 for i in range(fields.n)]
    request.state.facts |= {"n": fields.n, "seed": seed, "stream": fields.stream}
    if fields.stream:  # what the engine would refuse must be told before the stream begins
        await unless_gone(request.receive, checked(service, EditRequest(source.image, fields.prompt, **options)))
    await enter(request, service, fields.n)
    sent = Sent()

    def start(seed: int, index: int) -> Coroutine[Any, Any, dict]:
        on_step = sent.listener(service, fields, index)
        return edit(request, service, fields, source, options | {"seed": seed}, on_step)

    work = all_or_none([start(seed, index) for index, seed in enumerate(seeds)])
    if fields.stream:
        return StreamingResponse(
            events(sent, work, request, fields), media_type="text/event-stream", headers=NOT_STORED
        )
    return JSONResponse(reply(fields, await unless_gone(request.receive, work)), headers=NOT_STORED)


NOT_STORED = {"Cache-Control": "no-store"}


def check_fields(service: Service, fields: Fields) -> None:
    """Refuse what contradicts itself, or asks for another model."""
    name = service.model.name
    if fields.model not in (None, name):
        raise Refused("model_not_found", f"this server has one model, {name}; give that or none", "model")
    if fields.output_compression is not None and fields.output_format == "png":
        raise Refused(
            "invalid_value", "output_compression is for jpeg and webp; png loses nothing", "output_compression"
        )
    if fields.partial_images and not fields.stream:
        raise Refused("invalid_value", "partial_images needs stream=true", "partial_images")
    if fields.n > (most := service.serving.max_waiting):
        raise Refused("invalid_value", f"n is {fields.n}, and at most {most} edits may wait; ask for less", "n")
    if fields.tier not in (None, *(tiers := service.model.tiers)):
        raise Refused("invalid_value", f"this model has no tier {fields.tier}; choose of {', '.join(tiers)}", "tier")


async def checked(service: Service, request: EditRequest) -> None:
    """Check a request as the engine does, in the time of an edit."""
    seconds = service.options.timeout
    try:
        async with asyncio.timeout(seconds):
            await service.serving.check(request)
    except TimeoutError:
        raise TimedOut(f"the image was not read within {seconds:g} s; send a smaller one") from None


def options_of(fields: Fields, source: Source) -> EditOptions:
    """The arguments of `Engine.edit` that are given."""
    given = {name: value for name in SAME_NAME if (value := getattr(fields, name)) is not None}
    return EditOptions(**given, resolution=source.resolution)  # type: ignore[typeddict-item]


async def enter(request: Request, service: Service, edits: int) -> None:
    """Give back the seat of the reading; the edits take theirs as they start, all or none.

    Raises:
        Refused: there is no room for so many.
    """
    request.state.admission.release()
    await check_room(service, service.reading + edits)


async def edit(
    request: Request, service: Service, fields: Fields, source: Source, options: EditOptions,
    on_step: Callable[[int, int, np.ndarray], None],
) -> dict:  # fmt: skip
    """One edit, as an entry of the reply."""
    seconds = service.options.timeout
    result = await service.serving.edit(
        source.image, fields.prompt, timeout=seconds, tier=fields.tier, on_step=on_step, **options
    )
    service.metrics.edited(result)
    request.state.facts |= {"batch_size": result.batch_size, "waited": round(result.waited, 4)}
    text = text_for(service, fields, source, options, result)
    return await asyncio.to_thread(entry, fields, source, result, text, service.options.finishing)


def text_for(
    service: Service, fields: Fields, source: Source, options: EditOptions, result: EditResult
) -> PngInfo | None:
    """The parameters of an edit for its PNG, where the server writes them."""
    model = service.model
    if model.digest is None or fields.output_format != "png":
        return None
    more = {"size": fields.size if fields.size != "auto" else None, "tier": fields.tier or model.runtime["tier"]}
    asked = {name: value for name, value in (options | model.runtime | more).items() if name != "seed"}
    record = describe_request(model.name, model.digest, fields.prompt, asked, model.defaults)
    assert isinstance(result.seed, int)  # of one edit
    return text_of(record, Upload("upload", source.data), result.seed, result.images[0].size)


def entry(fields: Fields, source: Source, result: EditResult, text: PngInfo | None, finishing: Finishing) -> dict:
    image = result.images[0]
    return {
        "b64_json": encode(image, fields.output_format, fields.output_compression, finishing, source.data, text),
        "seed": result.seed,
        "size": f"{image.width}x{image.height}",
        "box": source.box or result.boxes[0],
        "timings": {name: round(seconds, 4) for name, seconds in result.timings.items()},
        "waited": round(result.waited, 4),
        "batch_size": result.batch_size,
        "warnings": source.warnings + result.warnings,
    }


def reply(fields: Fields, entries: list[dict]) -> dict:
    """The body of the answer; OpenAI's, with more in each entry of `data`."""
    data = [{name: value for name, value in each.items() if name != "size"} for each in entries]
    return {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": fields.output_format,
        "size": entries[0]["size"],
        "data": data,
    }


async def all_or_none(work: Iterable[Coroutine[Any, Any, dict]]) -> list[dict]:
    """The results of all; the first that fails, and whoever cancels this, stops the others."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Value]) -> Value:
    """The result of `work`, which is cancelled when the client goes.

    Raises:
        ClientDisconnect: it went.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
