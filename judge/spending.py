"""What a run has asked for so far, and when it must stop."""

import threading

from ..core.errors import MRCError


class Stopped(MRCError):
    """Nothing more may be asked for in this run; what was answered is kept."""


class Spending:
    """Requests sent and tokens used by this run, with limits; shared by its threads.

    Requests never exceed `max_requests`. Tokens are known when a reply is there: those of the requests
    that are under way when `max_tokens` is reached come on top.
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
        """Count a request that is about to be sent.

        Raises:
            Stopped: it must not be.
        """
        self.check()
        with self.lock:
            for name, spent, limit in (
                ("--max-requests", self.requests, self.max_requests),
                ("--max-tokens", self.tokens, self.max_tokens),
            ):
                if limit is not None and spent >= limit:
                    raise Stopped(f"{name} {limit} is reached; run it again to go on with as much")
            self.requests += 1

    def check(self) -> None:
        """Raise Stopped once the run was stopped."""
        if self.stopped.is_set():
            raise Stopped(self.reason)

    def reply(self, tokens: int | None) -> None:
        """Count the tokens of a reply."""
        if tokens is None and self.max_tokens is not None:
            raise MRCError("the server does not say how many tokens it used; limit the run by --max-requests instead")
        with self.lock:
            self.tokens += tokens or 0

    def stop(self, reason: str) -> None:
        """No thread may send another request; the first reason is what they say."""
        with self.lock:
            self.reason = self.reason or reason
            self.stopped.set()

    def wait(self, seconds: float) -> None:
        """Sleep, but not longer than the run."""
        self.stopped.wait(seconds)
