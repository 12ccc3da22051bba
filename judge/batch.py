"""Many items judged at a time."""

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
AHEAD = 64  # items a thread that may be judged before the first one is done


def judge_all(
    score: Callable[[T], R], items: Sequence[T], concurrency: int, spending: Spending, name: str = "judge"
) -> Iterator[R]:
    """`score` of every item, in their order, `concurrency` at a time; a text says why an item cannot be judged.

    An item has one request under way at a time, so `concurrency` is also the limit of requests. Shows what
    was used so far, stored replies included, and an estimate of the whole.

    Raises:
        MRCError: what `score` raises; nothing more is asked for then, and replies under way are waited for.
    """

    def judged(item: T) -> R:
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
            left = iter(items)
            for done, _ in enumerate(items, start=1):  # the bar counts nothing where it is not shown
                while len(waiting) < AHEAD * concurrency and (item := next(left, None)) is not None:
                    waiting.append(pool.submit(judged, item))
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
