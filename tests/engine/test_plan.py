import numpy as np
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.core.reward import BEST, NO_FAULTS
from mrc_edit.engine.arguments import check_guidance
from mrc_edit.engine.plan import make_plan
from mrc_edit.engine.rewards import check_reward

REWARD = (BEST, NO_FAULTS)
LOW = ((1.0, 1.0, 1.0), NO_FAULTS)
SAME = (REWARD, REWARD, REWARD)


def branches(plan):
    return {
        (int(plan.image[p]), plan.texts[t], bool(plan.sees_image[p])): plan.guidance[:, n].sum()
        for n, (p, t) in enumerate(zip(plan.branch, plan.text, strict=True))
    }


def test_three_branches_share_two_inputs():
    plan = make_plan(["snow"], [SAME], 7.5, 1.5)
    assert branches(plan) == {(0, "snow", True): 7.5, (0, "", True): -6.0, (0, "", False): -0.5}
    assert len(plan.image) == 2


@pytest.mark.parametrize(
    ("text", "guidance", "image_guidance", "expected"),
    [
        ("snow", 7.5, 1.0, {(0, "snow", True): 7.5, (0, "", True): -6.5}),
        ("snow", 1.5, 1.5, {(0, "snow", True): 1.5, (0, "", False): -0.5}),
        ("snow", 1.0, 1.0, {(0, "snow", True): 1.0}),
        ("", 7.5, 1.5, {(0, "", True): 1.5, (0, "", False): -0.5}),
        ("", 7.5, 1.0, {(0, "", True): 1.0}),
    ],
)
def test_weightless_branches_drop_out(text, guidance, image_guidance, expected):
    assert branches(make_plan([text], [SAME], guidance, image_guidance)) == expected


def test_negative_prompts_take_the_place_of_the_empty_text():
    plan = make_plan(["snow", "rain"], [SAME, SAME], 7.5, 1.5, ["", "fog"])
    assert branches(plan) == {
        (0, "snow", True): 7.5, (0, "", True): -6.0, (0, "", False): -0.5,
        (1, "rain", True): 7.5, (1, "fog", True): -6.0, (1, "fog", False): -0.5,
    }  # fmt: skip


def test_a_batch_shares_texts_and_keeps_rewards_apart():
    other = ((1.0, 2.0, 3.0), "x")
    plan = make_plan(["snow", "rain", "snow"], [SAME, (other, other, other), SAME], 7.5, 1.5)
    assert plan.texts == ["snow", "", "rain"]
    assert plan.rewards == [REWARD, other, REWARD]
    np.testing.assert_array_equal(plan.reward, plan.image)
    np.testing.assert_allclose(plan.guidance.sum(axis=1), 1.0)


@pytest.mark.parametrize(
    ("text", "rewards", "inputs", "weights"),
    [
        ("snow", (REWARD, LOW, LOW), 3, [7.5, -6.0, -0.5]),  # nothing is shared before the text
        ("snow", (REWARD, REWARD, LOW), 2, [7.5, -6.0, -0.5]),
        ("", (REWARD, REWARD, LOW), 2, [1.5, -0.5]),
        ("", (REWARD, LOW, LOW), 3, [7.5, -6.0, -0.5]),  # an empty instruction alone makes no branches equal
    ],
)
def test_branches_with_their_own_reward_share_less(text, rewards, inputs, weights):
    plan = make_plan([text], [rewards], 7.5, 1.5)
    assert len(plan.image) == inputs
    np.testing.assert_allclose(plan.guidance, [weights])
    for n, p in enumerate(plan.branch):
        kind = 2 if not plan.sees_image[p] else 0 if n == 0 else 1
        assert plan.rewards[plan.reward[p]] == rewards[kind]


def test_a_branch_whose_weights_cancel_stays():
    """Of an empty instruction and a scale that swallows the other: the branch that tiers ask for is still there."""
    plan = make_plan([""], [SAME], 1e300, 1.5)
    np.testing.assert_array_equal(plan.unguided.sum(), 1)


@pytest.mark.parametrize("value", [0.99, -1, float("nan"), float("inf"), "7", None])
def test_bad_guidance(value):
    with pytest.raises(MRCError, match="guidance_scale"):
        check_guidance(value, "guidance_scale")


@pytest.mark.parametrize(
    "scores", [(5, 5), (5, 5, 5, 5), (), 5, "555", (5, 5, 5.01), (-0.1, 5, 5), (5, float("nan"), 5), (5, "5", 5), None]
)
def test_bad_scores(scores):
    with pytest.raises(MRCError, match="reward"):
        check_reward(scores, None)


def test_scores_may_be_a_numpy_array():
    assert check_reward(np.array([0, 2.5, 5]), "x") == ((0.0, 2.5, 5.0), "x")
