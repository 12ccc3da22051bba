"""`mrc-rewards build --ray`: the same judging as a Ray Data job. Every worker opens the data and a judge of its own.

The data and OUT must be on every machine under the same path, and the key in every machine's environment:
it is not passed on. All workers store replies in OUT; the limits are shared out among them.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...core.cluster import connected, prepare_ray
from ...core.errors import MRCError
from ...core.hub import is_hub_name
from ...judge import Reward
from ...judge.batch import judge_all
from ...judge.spending import Spending
from ..data import open_data
from .config import BuildConfig
from .scoring import open_config_judge, scorer

PER_THREAD = 8  # triplets of a worker's batch, a thread


class Worker:
    """Judges batches of triplet numbers; `config` is a BuildConfig as JSON. An error is returned as number -1."""

    def __init__(self, config: str) -> None:
        self.config = BuildConfig.from_json(config)
        self.spending = self.config.options.spending()

    @cached_property
    def score(self) -> Callable[[int], Reward | str]:
        config = self.config
        triplets = open_data(config.data, None, config.photographs, config.seed, config.columns)
        return scorer(triplets, open_config_judge(config, triplets, self.spending))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        numbers = [int(number) for number in batch["item"]]
        try:
            judged = list(judge_all(self.score, numbers, self.config.options.concurrency, self.spending))
        except (MRCError, OSError) as error:
            return {"number": [-1], "result": [str(error)]}
        results = [json.dumps(reward if isinstance(reward, str) else asdict(reward)) for reward in judged]
        return {"number": numbers, "result": results}


def judge_on_ray(config: BuildConfig, count: int, spending: Spending) -> list[Reward | str]:
    """The reward of every triplet in order, or the reason why it cannot be read.

    Runs on the cluster of RAY_ADDRESS, or on a new one of this machine.

    Raises:
        MRCError: ray is missing or does not start, a limit is below one a worker, or what a worker raises.
    """
    prepare_ray()
    import ray

    workers, options = config.ray_workers or 1, config.options
    for name, limit in (("--max-requests", options.max_requests), ("--max-tokens", options.max_tokens)):
        if limit is not None and limit < workers:
            raise MRCError(f"{name} is {limit}, and {workers} --workers share it; give more, or fewer workers")
    share = replace(
        options,
        concurrency=max(1, options.concurrency // workers),
        max_requests=None if options.max_requests is None else options.max_requests // workers,
        max_tokens=None if options.max_tokens is None else options.max_tokens // workers,
    )
    share.spending()  # checks the limits before the workers start
    with connected():
        batch = min(share.concurrency * PER_THREAD, -(-count // workers))
        numbers = ray.data.from_items(list(range(count)), override_num_blocks=-(-count // batch))
        rows = numbers.map_batches(
            Worker,
            fn_constructor_args=(with_absolute_paths(replace(config, options=share)).to_json(),),
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0.5,  # a worker waits for the server most of the time
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        judged: dict[int, Reward | str] = {}
        for row in tqdm(rows.iter_rows(), total=count, desc="judge", unit="item", disable=None):
            if row["number"] < 0:
                raise MRCError(row["result"])
            if spending.stopped.is_set():
                raise MRCError(spending.reason)
            result = json.loads(row["result"])
            judged[row["number"]] = result if isinstance(result, str) else reward_from(result)
    return [judged[number] for number in range(count)]


def with_absolute_paths(config: BuildConfig) -> BuildConfig:
    """The same config for a worker with another working folder."""
    named = config.data.startswith("miniature:") or (not Path(config.data).exists() and is_hub_name(config.data))
    data = config.data if named else str(Path(config.data).resolve())
    photographs = config.photographs and str(Path(config.photographs).resolve())
    return replace(config, data=data, photographs=photographs, out=str(Path(config.out).resolve()))


def reward_from(fields: dict) -> Reward:
    """The reward of `asdict` and JSON, whose lists were tuples."""
    values: dict = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Reward(**values)
