"""Any server with OpenAI chat completions: which replies count, which requests are sent again.

The key is read from OPENAI_API_KEY and given to the client alone; `secret.py` keeps it out of all that a server says.
"""

import email.utils
import os
import random
import sys
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx2
import openai
from tqdm import tqdm

from ..core.errors import MRCError
from .client import Client
from .questions import SCHEMA, Message
from .reply import Reply, one_line, read_completion
from .secret import protected_key, without_key
from .spending import Spending

Options = dict[str, object]
ATTEMPTS = 6  # requests for one reply, while the server is busy, broken or silent
LONGEST_WAIT = 600.0  # seconds between two attempts; no retry where a server asks for more
SILENCE = 20  # questions in a row without a reply after which the run ends
LONGEST_FAULT = 200  # characters of a server's error in our message
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
        timeout: seconds for a whole request.
        backoff: seconds before the second attempt; doubled for each further one.

    Raises:
        MRCError: a base_url that cannot be used, or no key where one is needed.
    """

    def __init__(
        self, model: str, base_url: str | None, spending: Spending, timeout: float = 120.0, backoff: float = 1.0
    ) -> None:
        self.model, self.spending, self.backoff = model, spending, backoff
        key, base_url = protected_key(), base_url or os.environ.get("OPENAI_BASE_URL")
        check_access(base_url, key)
        self.client = Client(key, base_url, timeout)
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
                fault, status = shown(error), error.status_code
                if status in (401, 403):
                    raise MRCError(f"the server refuses access (HTTP {status}); check OPENAI_API_KEY") from None
                if 300 <= status < 400:
                    raise MRCError(
                        f"the server redirects (HTTP {status}), which is not followed; give the --base-url it leads to"
                    ) from None
                if status == 404:
                    raise MRCError(f"{fault}; check the base URL and the model's name") from None
                if status in (400, 422) and options:
                    refused = {name for name in options if name in fault} or set(options)
                    options = {name: value for name, value in options.items() if name not in refused}
                    continue
                if status < 500 and status not in BUSY:
                    raise NoReply(fault) from None
                wait = retry_after(error.response.headers)
            except (openai.OpenAIError, httpx2.HTTPError, TimeoutError) as error:
                cause = error.__cause__ or error
                fault = shown(cause) if isinstance(cause, MRCError) else f"{type(cause).__name__}, {shown(cause)}"
            except MRCError as error:
                fault = shown(error)
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
        """One request.

        Raises:
            openai.OpenAIError, TimeoutError: no reply.
            MRCError: a reply that is no chat completion.
        """
        reply = read_completion(self.client.complete(self.model, messages, options))
        return Reply(without_key(reply.text), reply.tokens)


def shown(error: BaseException) -> str:
    """A server's error for our message."""
    return one_line(without_key(error))[:LONGEST_FAULT]


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
    if base_url is not None and not is_address(base_url):
        raise MRCError("--base-url must be like http://localhost:8000/v1, without a name or password in it")


def is_address(url: str) -> bool:
    """Whether requests can be sent there."""
    try:
        parts, host = urlsplit(url), httpx2.URL(url).host  # which differ in what they accept
        return parts.scheme in ("http", "https") and bool(host and parts.port != 0) and "@" not in parts.netloc
    except (ValueError, httpx2.InvalidURL):
        return False


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait: Retry-After in seconds or as a date; 0 without it."""
    value = headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
