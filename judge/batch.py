"""Judge many items in parallel."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from ..core.errors import MRCError
from .reward import Reward
from .spending import Spending

T = TypeVar("T")
R = TypeVar("R", bound=Reward | str)
AHEAD = 64  # items a thread that may be ahead of the oldest unfinished one


def judge_all(
    score: Callable[[T], R], items: Sequence[T], concurrency: int, spending: Spending, name: str = "judge"
) -> Iterator[R]:
    """`score` of every item in order, `concurrency` at a time; a text is the reason why an item cannot be judged.

    An item has one request in flight at a time, so `concurrency` also limits the requests in flight. The progress
    bar shows the tokens so far, those of stored replies included, and an estimate of the total.

    Raises:
        MRCError: what `score` raises; then no more requests are sent, and replies in flight are awaited.
    """

    def judge_one(item: T) -> R:
        spending.check()
        try:
            return score(item)
        except MRCError as error:
            spending.stop(str(error))
            raise

    waiting: deque[Future[R]] = deque()
    used = 0
    with ThreadPoolExecutor(concurrency) as pool, tqdm(total=len(items), desc=name, unit="item", disable=None) as bar:
        try:
            remaining = iter(items)
            for done, _ in enumerate(items, start=1):  # a hidden bar does not count
                while len(waiting) < AHEAD * concurrency and (item := next(remaining, None)) is not None:
                    waiting.append(pool.submit(judge_one, item))
                reward = waiting.popleft().result()
                used += reward.tokens if isinstance(reward, Reward) else 0
                bar.update()
                if used:
                    bar.set_postfix_str(f"{used:,} of about {used * len(items) // done:,} tokens", refresh=False)
                yield reward
        except BaseException:
            spending.stop("the run was stopped; run it again to go on")
            pool.shutdown(cancel_futures=True)
            raise
