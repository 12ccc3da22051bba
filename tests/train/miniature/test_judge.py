import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.judge import Judge
from mrc_edit.train.miniature.judge import OracleJudge
from mrc_edit.train.miniature.oracle import PASS
from mrc_edit.train.miniature.photographs import load_photographs
from mrc_edit.train.miniature.triplets import MiniatureTriplets


@pytest.fixture(scope="module")
def triplets():
    return MiniatureTriplets(load_photographs(), 12, seed=3)


@pytest.fixture(scope="module")
def judge(triplets) -> Judge:
    return OracleJudge([triplets.edit(i)[0] for i in range(12)], triplets.photographs)


def test_it_says_what_the_triplets_say(triplets, judge):
    for i in range(12):
        triplet = triplets[i]
        reward = judge.score(triplet.source, triplet.edited, triplet.instruction)
        assert reward.scores == triplet.scores and "; ".join(reward.texts) == triplet.reward_text
        assert reward.verdicts == tuple(score >= PASS for score in triplet.scores)
        assert reward.usable and reward.tokens == 0


def test_what_it_does_not_know(triplets, judge):
    triplet = triplets[0]
    with pytest.raises(MRCError, match="no scene"):
        judge.score(triplet.source, triplet.edited, "sing")
    with pytest.raises(MRCError, match="no scene"):
        judge.score(Image.fromarray(np.asarray(triplet.source)[::-1]), triplet.edited, triplet.instruction)
    with pytest.raises(MRCError, match="128×128"):
        judge.score(triplet.source, triplet.edited.resize((64, 64)), triplet.instruction)
