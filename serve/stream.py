"""The edits of a request as server-sent events: OpenAI's, and a comment after each step, which its clients skip."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import Request
from PIL import Image

from ..core.errors import MRCError
from ..engine.failures import as_error
from .errors import code_of, describe
from .fields import Fields
from .images import encode
from .preview import preview
from .service import Service

PING = 15  # seconds without news after which a comment keeps the connection open


@dataclass
class Event:
    """Something to send: a comment, or what an event of `kind` carries."""

    kind: str
    comment: str = ""
    data: dict = field(default_factory=dict)
    image: Image.Image | None = None  # encoded when it is sent


class Sent:
    """What an edit tells on its way, from the engine's thread to the loop."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def put(self, event: Event) -> None:
        self.loop.call_soon_threadsafe(self.queue.put_nowait, event)

    def listener(self, service: Service, fields: Fields, index: int) -> Callable[[int, int, np.ndarray], None]:
        """`on_step` of the edit of that index."""
        side = service.model.geometry.vae_scale
        made = 0

        def on_step(step: int, steps: int, latents: np.ndarray) -> None:
            nonlocal made
            service.metrics.steps.inc()
            if not fields.stream:
                return
            self.put(Event("step", comment=f"step {step + 1} of {steps}, edit {index + 1} of {fields.n}"))
            if made < fields.partial_images and step + 1 >= (made + 1) * steps / (fields.partial_images + 1):
                height, width = latents.shape[2:]
                image = preview(latents[0], service.model.preview, (width * side, height * side))
                self.put(Event("partial_image", data={"partial_image_index": made, "index": index}, image=image))
                made += 1

        return on_step


async def events(
    sent: Sent, work: Coroutine[Any, Any, list[dict]], request: Request, fields: Fields
) -> AsyncIterator[str]:
    """The body of a stream. It ends with the edits, or with an error event; a stream cut short would be no error
    to OpenAI's client."""
    finishing = request.app.state.service.options.finishing
    task = asyncio.create_task(work)
    task.add_done_callback(lambda _: sent.queue.put_nowait(None))
    try:
        while (event := await news(sent)) is not None:
            if event.comment:
                yield f": {event.comment}\n\n"
            elif event.image is not None:
                data = {"b64_json": await asyncio.to_thread(encode, event.image, fields.output_format, None, finishing)}
                size = {"size": f"{event.image.width}x{event.image.height}"}
                yield server_sent(event.kind, fields, data | size | event.data)
        for index, entry in enumerate(await task):
            yield server_sent("completed", fields, entry | {"index": index})
    except Exception as error:
        failure = error if isinstance(error, MRCError) else as_error(error)
        request.state.facts["error"] = code_of(failure)
        yield f"event: error\ndata: {json.dumps(describe(failure))}\n\n"
    finally:
        task.cancel()


async def news(sent: Sent) -> Event | None:
    """The next event; None at the end."""
    try:
        return await asyncio.wait_for(sent.queue.get(), PING)
    except TimeoutError:
        return Event("ping", comment="waiting")


def server_sent(kind: str, fields: Fields, data: dict) -> str:
    name = f"image_edit.{kind}"
    common = {
        "type": name,
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": fields.output_format,
        "quality": "auto",
    }
    return f"event: {name}\ndata: {json.dumps(common | data)}\n\n"
