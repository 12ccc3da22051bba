"""Any server that speaks OpenAI chat completions, through the `openai` client.

The key is read from OPENAI_API_KEY and goes into the client alone: where a server repeats it, in a reply
or an error, it is blotted out.
"""

import email.utils
import json
import os
import random
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from tqdm import tqdm

from ..core.errors import MRCError
from .questions import SCHEMA
from .reply import Reply
from .spending import Spending

ATTEMPTS = 6  # requests for one reply, while the server is busy, broken or silent
LONGEST_WAIT = 600.0  # seconds between two of them; a server that asks for more is given up
SILENCE = 20  # questions in a row without a reply after which the run ends
LONGEST_FAULT = 200  # characters of a server's error that are repeated
SECRET = 8  # characters from which a key is one; local servers are given "EMPTY" and the like
BUSY = {408, 409, 425, 429}  # besides 5xx
# Left out one by one where a server refuses them
OPTIONS = {
    "temperature": 0,
    "max_tokens": 4000,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "judgement", "strict": True, "schema": SCHEMA},
    },
}


class NoReply(MRCError):
    """The server gave no reply to this question, however often it was asked."""


class Endpoint:
    """A model on a server; `ask` may be called by many threads.

    Args:
        base_url: such as http://localhost:8000/v1; OpenAI's own (or OPENAI_BASE_URL) if None.
        timeout: seconds for a whole reply.
        backoff: seconds before the second attempt; doubled for each further one.

    Raises:
        MRCError: a base_url that cannot be used, or no key where one is needed.
    """

    def __init__(
        self, model: str, base_url: str | None, spending: Spending, timeout: float = 120.0, backoff: float = 1.0
    ) -> None:
        self.model, self.spending, self.timeout, self.backoff = model, spending, timeout, backoff
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        check_access(base_url, self.key)
        self.client = openai.OpenAI(
            api_key=self.key or "none",
            base_url=base_url,
            timeout=timeout,
            max_retries=0,  # `ask` is the one that retries
        )
        self.options: dict[str, Any] = OPTIONS
        self.unanswered = 0  # questions in a row
        self.lock = threading.Lock()

    def ask(self, messages: list[dict[str, Any]]) -> Reply:
        """The model's reply.

        Raises:
            NoReply: it gave none to this question.
            Stopped: nothing more may be asked for.
            MRCError: the server refuses the key or does not know the model, or has stopped answering.
        """
        options, attempts = self.options, 0
        while True:
            self.spending.request()
            wait = 0.0
            try:
                reply = self.request(messages, options)
            except openai.APIStatusError as error:
                fault, status = self.blotted(error)[:LONGEST_FAULT], error.status_code
                if status in (401, 403):
                    raise MRCError(f"the server refuses access (HTTP {status}); check OPENAI_API_KEY") from None
                if status == 404:
                    raise MRCError(f"{fault}; check the base URL and the model's name") from None
                if status in (400, 422) and options:
                    refused = {name for name in options if name in fault} or set(options)
                    options = {name: value for name, value in options.items() if name not in refused}
                    continue
                if status < 500 and status not in BUSY:
                    raise NoReply(fault) from None
                wait = retry_after(error.response.headers)
            except (openai.APIConnectionError, httpx2.HTTPError, TimeoutError) as error:
                cause = error.__cause__ or error
                fault = f"{type(cause).__name__}, {self.blotted(cause)}"
            except ValueError as error:
                fault = f"what came is no chat completion ({self.blotted(error)})"
            else:
                if left_out := self.options.keys() - options.keys():
                    tqdm.write(f"the judge's server takes no {', '.join(sorted(left_out))}: left out", file=sys.stderr)
                self.options, self.unanswered = options, 0
                return reply
            attempts += 1
            if attempts == ATTEMPTS or wait > LONGEST_WAIT:
                raise self.silence(f"{fault} (attempt {attempts})")
            self.spending.wait(max(wait, self.backoff * 2 ** (attempts - 1) * random.uniform(0.5, 1)))

    def silence(self, fault: str) -> MRCError:
        """What to raise for a question without a reply: after many in a row the run ends."""
        with self.lock:
            self.unanswered += 1
        if self.unanswered < SILENCE:
            return NoReply(fault)
        return MRCError(
            f"{SILENCE} questions in a row had no reply, the last: {fault}; see to the server and run it again: "
            "what was answered is kept"
        )

    def request(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> Reply:
        """One request. The client's time-out is between two bytes; a reply that trickles in is cut off here."""
        deadline = time.monotonic() + self.timeout
        body = b""
        create: Any = self.client.chat.completions.with_streaming_response.create
        with create(model=self.model, messages=messages, **options) as response:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole reply in {self.timeout:g} s")
        try:
            completion = json.loads(body)
            text = completion["choices"][0]["message"].get("content") or ""
            tokens = (completion.get("usage") or {}).get("total_tokens")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(repr(error)) from None
        if not isinstance(text, str) or not isinstance(tokens, int | None):
            raise ValueError(f"content {type(text).__name__}, total_tokens {type(tokens).__name__}")
        return Reply(self.blotted(text), tokens)

    def blotted(self, value: object) -> str:
        text = str(value)
        return text.replace(self.key, "[key]") if len(self.key) >= SECRET else text


def check_access(base_url: str | None, key: str) -> None:
    if base_url is None and not key:
        raise MRCError(
            "there is no OPENAI_API_KEY in the environment; set it, or give the --base-url of a local server"
        )
    if not key.isascii() or not key.isprintable():
        raise MRCError("OPENAI_API_KEY has characters that no key has; set it again")
    if base_url is not None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise MRCError("--base-url must be like http://localhost:8000/v1, without a name or password in it")


def retry_after(headers: Any) -> float:
    """Seconds that the server asks to wait: Retry-After in seconds or as a date; 0 if it does not say."""
    value = headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
