"""Ray, on the cluster of RAY_ADDRESS, or on a new one of this machine that answers nobody else."""

import logging
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from .errors import MRCError, reason


def prepare_ray() -> None:
    """Set what Ray reads as soon as it is imported. A cluster of our own answers only who has its token.

    Raises:
        MRCError: Ray is missing.
    """
    if find_spec("ray") is None:
        raise MRCError("--ray needs the ray package: pip install 'mrc-edit[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" not in os.environ:
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)


@contextmanager
def connected() -> Iterator[None]:
    """Ray, for the block; after `prepare_ray`.

    Raises:
        MRCError: the cluster does not start, or cannot be reached.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if "RAY_ADDRESS" in os.environ:
            ray.init(os.environ["RAY_ADDRESS"], **quiet)
        else:
            ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except Exception as error:  # Ray has no type for it
        raise MRCError(f"Ray does not start, or does not answer at RAY_ADDRESS ({reason(error)})") from None
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Ray puts its own in their place
    try:
        yield
    finally:
        ray.shutdown()
