"""Any server with OpenAI chat completions, through the `openai` client.

The key is read from OPENAI_API_KEY and given to the client alone: where a server repeats it, in a reply
or an error, it is replaced by "[key]".
"""

import email.utils
import json
import os
import random
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from tqdm import tqdm

from ..core.errors import MRCError
from .questions import SCHEMA, Message
from .reply import Reply
from .spending import Spending

Options = dict[str, object]
ATTEMPTS = 6  # requests for one reply, while the server is busy, broken or silent
LONGEST_WAIT = 600.0  # seconds between two attempts; no retry where a server asks for more
SILENCE = 20  # questions in a row without a reply after which the run ends
LONGEST_FAULT = 200  # characters of a server's error in our message
SECRET = 8  # shortest key that is secret; local servers take "EMPTY" and the like
BUSY = {408, 409, 425, 429}  # statuses to retry, besides 5xx
# Left out one by one where a server refuses them
OPTIONS: Options = {
    "temperature": 0,
    "max_tokens": 4000,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "judgement", "strict": True, "schema": SCHEMA},
    },
}


class NoReply(MRCError):
    """The server did not reply to this question in any attempt."""


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
        self.options = OPTIONS
        self.unanswered = 0  # questions in a row
        self.lock = threading.Lock()

    def ask(self, messages: list[Message]) -> Reply:
        """The model's reply, after retries where the server is busy or broken.

        Raises:
            NoReply: all attempts failed.
            Stopped: the run may send no more requests.
            MRCError: the server refuses the key or does not know the model, or no longer answers any question.
        """
        options, attempts = self.options, 0
        while True:
            self.spending.request()
            wait = 0.0
            try:
                reply = self.request(messages, options)
            except openai.APIStatusError as error:
                fault, status = self.without_key(error)[:LONGEST_FAULT], error.status_code
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
                fault = f"{type(cause).__name__}, {self.without_key(cause)}"
            except ValueError as error:
                fault = f"the response is no chat completion ({self.without_key(error)})"
            else:
                if left_out := self.options.keys() - options.keys():
                    tqdm.write(
                        f"the judge's server does not accept {', '.join(sorted(left_out))}; left out from now on",
                        file=sys.stderr,
                    )
                self.options, self.unanswered = options, 0
                return reply
            attempts += 1
            if attempts == ATTEMPTS or wait > LONGEST_WAIT:
                raise self.silence(f"{fault} (attempt {attempts})")
            self.spending.wait(max(wait, self.backoff * 2 ** (attempts - 1) * random.uniform(0.5, 1)))

    def silence(self, fault: str) -> MRCError:
        """The error for a question without a reply; after `SILENCE` of them in a row one that ends the run."""
        with self.lock:
            self.unanswered += 1
        if self.unanswered < SILENCE:
            return NoReply(fault)
        return MRCError(
            f"{SILENCE} questions in a row had no reply, the last: {fault}; check the server and run it again: "
            "replies so far are stored"
        )

    def request(self, messages: list[Message], options: Options) -> Reply:
        """One request. The client's time-out is between two bytes; the deadline here is for the whole reply."""
        deadline = time.monotonic() + self.timeout
        body = b""
        # its overloads want each option as an argument of its own type
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
        return Reply(self.without_key(text), tokens)

    def without_key(self, value: object) -> str:
        text = str(value)
        return text.replace(self.key, "[key]") if len(self.key) >= SECRET else text


def check_access(base_url: str | None, key: str) -> None:
    """Check server and key without repeating the key.

    Raises:
        MRCError: no key and no server, or one that cannot be valid.
    """
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


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait: Retry-After in seconds or as a date; 0 without it."""
    value = headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
