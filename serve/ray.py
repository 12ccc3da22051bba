"""A model in replicas on Ray (docs/ray.md).

The server's own process answers HTTP, as without Ray; Ray carries edits from there to the replicas.
"""

import logging
import math
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from ..core.cluster import connected
from ..core.errors import MRCError
from .replicas import Deployed, Fleet, Replica, held
from .service import Model

REPLICA = "replica"
QUIET = {"log_level": "WARNING", "enable_access_log": False}


@contextmanager
def deployed(model: Deployed, max_waiting: int) -> Iterator[tuple[Model, Fleet]]:
    """A model in replicas, on the cluster of RAY_ADDRESS or on a new one of this machine, until the block ends.

    Raises:
        MRCError: the cluster cannot be reached, or the model cannot be opened there.
    """
    with connected():
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        application = f"{model.name}-{secrets.token_hex(4)}"  # another server of the cluster may have the same model
        try:
            handle = started(deployment(model), application)
            yield handle.describe.remote().result(), Fleet(handle, max_waiting)
        finally:
            serve.delete(application)


def started(replicas: serve.Application, name: str) -> DeploymentHandle:
    """Replicas that are ready. Of an error of ours Ray keeps the text alone.

    Raises:
        MRCError: they cannot start.
    """
    try:
        return serve.run(replicas, name=name, route_prefix=None)
    except RuntimeError as error:
        told = serve.status().applications[name].deployments[REPLICA].message
        own = re.findall(r"MRCError: (.+)", told)
        raise MRCError(own[-1] if own else f"the replicas do not start: {error}; Ray's logs say why") from None


def deployment(model: Deployed) -> serve.Application:
    """The replicas, each with its share of the cluster's cores and GPUs."""
    fewest, most = model.replicas
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = share([node.get("CPU", 0) for node in nodes], most)
    cards = min(1.0, share([node.get("GPU", 0) for node in nodes], most))
    scaling: dict[str, Any] = {"num_replicas": most}
    if fewest < most:
        scaling = {
            "autoscaling_config": {
                "min_replicas": fewest,
                "max_replicas": most,
                "target_ongoing_requests": model.max_batch,
                "upscale_delay_s": 5,
                "downscale_delay_s": 300,
                "look_back_period_s": 10,
                "metrics_interval_s": 1,
            }
        }
    options = serve.deployment(
        name=REPLICA,
        ray_actor_options={"num_cpus": cores, "num_gpus": cards},
        max_ongoing_requests=held(model.max_batch),
        graceful_shutdown_timeout_s=model.drain,
        max_constructor_retry_count=1,
        logging_config=QUIET,
        **scaling,
    )
    return options(Replica).bind(model, None if cards else max(1, int(cores)))


def share(amounts: Sequence[float], replicas: int) -> float:
    """The most that each of so many replicas can have of a resource, of which the nodes have these amounts.

    Whole from 1 up, below that in steps of Ray's, 0.0001.
    """

    def fitting(amount: float) -> int:
        return sum(int(have / amount + 1e-6) for have in amounts)

    candidates: Iterable[float] = (have / count for have in amounts for count in range(1, replicas + 1) if have)
    best = max((each for each in candidates if fitting(each) >= replicas), default=0.0)
    return float(int(best)) if best >= 1 else math.floor(best * 10_000) / 10_000
