"""The judge of a build, and the score of a triplet by number: what one process and Ray workers have in common."""

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from ...core.errors import MRCError
from ...judge import Judge, Reward
from ...judge.options import open_judge
from ...judge.spending import Spending
from ..data import Triplets
from .config import BuildConfig


def open_config_judge(config: BuildConfig, triplets: Triplets, spending: Spending) -> Judge:
    """The judge that `config` names.

    Raises:
        MRCError: what `open_judge` raises.
    """
    if config.judge == "openai":
        return open_judge(config.options, Path(config.out) / "replies", spending)
    from ..miniature.judge import OracleJudge
    from ..miniature.triplets import MiniatureTriplets

    assert isinstance(triplets, MiniatureTriplets)  # BuildConfig requires it
    edits = (triplets.edit(i)[0] for i in tqdm(range(len(triplets)), desc="draw scenes", disable=None))
    return OracleJudge(edits, triplets.photographs)


def scorer(triplets: Triplets, judge: Judge) -> Callable[[int], Reward | str]:
    """A function from triplet number to its reward, or to the reason why it cannot be read."""

    def score(index: int) -> Reward | str:
        try:
            triplet = triplets[index]
        except MRCError as error:
            return str(error)
        return judge.score(triplet.source, triplet.edited, triplet.instruction)

    return score
