"""The `openai` client, with the bounds that it lacks: on the time of a whole request and the size of a reply."""

import asyncio
import threading
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import httpx2
import openai

from ..core.errors import MRCError
from .questions import Message

LARGEST = 1 << 20  # bytes of a reply, after decompression


class Client:
    """Chat completions of one server, for many threads.

    Args:
        timeout: seconds for a whole request, from the connection to the last byte of the reply.
    """

    def __init__(self, key: str, base_url: str | None, timeout: float) -> None:
        self.timeout, self.loop = timeout, event_loop()  # one loop a client, whichever thread asks
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self.client = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=base_url,
            timeout=None,  # those of the client count from byte to byte
            max_retries=0,
            http_client=WholeReplies(timeout=None, limits=limits),
        )

    def complete(self, model: str, messages: list[Message], options: Mapping[str, object]) -> bytes:
        """The body of the server's reply.

        Raises:
            openai.OpenAIError: no reply, one with an error status, or one that is too large.
            TimeoutError: no whole reply in time.
        """
        return asyncio.run_coroutine_threadsafe(self.post(model, messages, options), self.loop).result()

    async def post(self, model: str, messages: list[Message], options: Mapping[str, object]) -> bytes:
        # its overloads want each option as an argument of its own type
        create: Any = self.client.chat.completions.with_raw_response.create
        try:
            async with asyncio.timeout(self.timeout):
                response = await create(model=model, messages=messages, **options)
        except TimeoutError:
            raise TimeoutError(f"no whole reply in {self.timeout:g} s") from None
        return response.content


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """Runs in a thread of its own: only there can a request be stopped wherever it waits."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="judge").start()
    return loop


class WholeReplies(httpx2.AsyncClient):
    """Reads every response at once, up to `LARGEST` bytes; follows no redirect, since the key would go along."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        request.headers["Accept-Encoding"] = "identity"
        response = await super().send(request, **options | {"stream": True, "follow_redirects": False})
        body = bytearray()
        try:
            async for piece in response.aiter_raw():
                body += piece
                check_size(len(body))
        finally:
            await response.aclose()
        content = decompressed(bytes(body), response.headers.get("Content-Encoding", "identity"))
        kept = {"content-type", "retry-after"}
        headers = {name: value for name, value in response.headers.items() if name.lower() in kept}
        return httpx2.Response(response.status_code, headers=headers, content=content, request=request)


def decompressed(body: bytes, encoding: str) -> bytes:
    """The body of a server that compresses although it was asked not to.

    Raises:
        MRCError: larger than `LARGEST`, damaged, or in another encoding than gzip.
    """
    if encoding.lower() not in ("gzip", "identity"):
        raise MRCError(f"the reply is compressed by {encoding[:20]!r}, which nobody asked for")
    if encoding.lower() == "gzip":
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            body = inflater.decompress(body, LARGEST + 1)
        except zlib.error as error:
            raise MRCError(f"the reply is damaged ({error})") from None
        if not inflater.eof and len(body) <= LARGEST:
            raise MRCError("the reply is damaged (its end is missing)")
    check_size(len(body))
    return body


def check_size(size: int) -> None:
    if size > LARGEST:
        raise MRCError(f"the reply is larger than {LARGEST:,} bytes")
