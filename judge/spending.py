"""The requests and tokens of a run, and when it must stop."""

import threading

from ..core.errors import MRCError


class Stopped(MRCError):
    """This run may send no more requests; its replies so far are stored."""


class Spending:
    """Requests and tokens of this run, with limits; shared by its threads.

    Requests never exceed `max_requests`. Tokens are known only after a reply: requests in flight may exceed
    `max_tokens`.
    """

    def __init__(self, max_requests: int | None = None, max_tokens: int | None = None) -> None:
        for name, value in (("--max-requests", max_requests), ("--max-tokens", max_tokens)):
            if value is not None and value < 1:
                raise MRCError(f"{name} is {value}; give a number from 1 up")
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.requests = self.tokens = 0
        self.stopped = threading.Event()
        self.reason = ""
        self.lock = threading.Lock()

    def request(self) -> None:
        """Count a request before it is sent.

        Raises:
            Stopped: a limit is reached or the run was stopped; do not send it.
        """
        self.check()
        with self.lock:
            for name, spent, limit in (
                ("--max-requests", self.requests, self.max_requests),
                ("--max-tokens", self.tokens, self.max_tokens),
            ):
                if limit is not None and spent >= limit:
                    raise Stopped(
                        f"{name} {limit} is reached; run the command again to go on, with the same limit again"
                    )
            self.requests += 1

    def check(self) -> None:
        """Raise Stopped if the run was stopped."""
        if self.stopped.is_set():
            raise Stopped(self.reason)

    def reply(self, tokens: int | None) -> None:
        """Count the tokens of a reply.

        Raises:
            MRCError: they are unknown, and the run has a limit of tokens.
        """
        if tokens is None and self.max_tokens is not None:
            raise MRCError("the server does not report its tokens; limit the run by --max-requests instead")
        with self.lock:
            self.tokens += tokens or 0

    def stop(self, reason: str) -> None:
        """Let no thread send another request; the first reason becomes their error."""
        with self.lock:
            self.reason = self.reason or reason
            self.stopped.set()

    def wait(self, seconds: float) -> None:
        """Sleep, but wake when the run is stopped."""
        self.stopped.wait(seconds)
