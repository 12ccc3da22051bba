import numpy as np
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.core.reward import BEST, NO_FAULTS
from mrc_edit.engine import Engine
from mrc_edit.engine.backends.base import GuidedUNet
from mrc_edit.engine.plan import make_plan
from mrc_edit.engine.tiers import EXACT, TIERS, Step, Tier, branch_groups, make_tier, schedule

REWARD = ((BEST, NO_FAULTS),) * 3
PLAN = make_plan(["snow"], [REWARD], 7.5, 1.5)
LATENT = {"num_inference_steps": 6, "resolution": 0, "output_type": "latent", "seed": 3}


def calls(tier, steps=6):
    """By step: which branches, and whether deeply."""
    groups = branch_groups(PLAN, tier)
    order = schedule(tier, len(groups), steps)
    return [
        [(group.tolist(), full) for group, full in zip(groups, step.full, strict=True) if full is not None]
        for step in order
    ]


def test_exact_is_everything_at_every_step():
    assert calls(EXACT) == [[([0, 1, 2], True)]] * 6
    assert schedule(EXACT, 1, 6) == [Step((True,))] * 6


def test_deep_features_every_third_step():
    assert [deep for ((_, deep),) in calls(Tier(deep_every=3, guidance_deep_every=3))] == [True, False, False] * 2


def test_each_branch_at_its_own_pace():
    actual = calls(Tier(deep_every=1, guidance_deep_every=2))
    assert actual == [[([0], True), ([1, 2], True)], [([0], True), ([1, 2], False)]] * 3


def test_guidance_is_recomputed_every_other_step():
    order = schedule(Tier(guidance_every=2), 2, 4)
    recomputed, reused = Step((True, True), recompute_delta=True), Step((True, None), reuse_delta=True)
    assert order == [recomputed, reused] * 2


def test_guidance_in_an_interval():
    actual = calls(Tier(guidance_interval=(0.5, 1.0)), 4)
    assert [len(step) for step in actual] == [1, 1, 2, 2]
    assert actual[0] == [([0], True)]
    assert [step.guided for step in schedule(Tier(guidance_interval=(0.5, 1.0)), 2, 4)] == [False, False, True, True]


def test_the_others_start_deep_when_their_turn_comes():
    actual = calls(Tier(deep_every=4, guidance_deep_every=4, guidance_interval=(0.5, 1.0)), 4)
    assert actual[2] == [([0], False), ([1, 2], True)]


@pytest.mark.parametrize(
    "settings",
    [{"guidance_every": 2}, {"guidance_every": 3}, {"deep_every": 1, "guidance_deep_every": 2}],
)
def test_where_the_noise_never_changes_a_tier_changes_nothing(fused, photo, settings, monkeypatch, error):
    """Law: what is reused is what would have been computed."""

    class Frozen(GuidedUNet):
        def __init__(self, branches):
            self.first, self.last = (1, 3) if branches == 2 else (0, branches)  # the others, the text's, or all

        def full(self, step, sample, guidance):
            rows = np.random.RandomState(0).randn(8, *sample[0, :4].shape).astype(np.float32)
            return np.tensordot(guidance, rows[self.first : self.last], 1)

        shallow = full

    monkeypatch.setattr(fused.backend, "guided_unet", lambda conditions, branch, **_: Frozen(len(branch)))
    exact, tiered = (
        Engine(fused.backend, tier).edit(photo, "snow", **LATENT).images for tier in (EXACT, Tier(**settings))
    )
    assert error(tiered, exact) <= 1e-5


@pytest.mark.parametrize("name", [name for name in TIERS if name != "exact"])
def test_a_tier_is_near_but_not_exact(engine, photo, name, error):
    exact = engine.edit(photo, "snow", **LATENT).images
    actual = Engine(engine.backend, TIERS[name]).edit(photo, "snow", **LATENT).images
    assert 1e-6 < error(actual, exact) < 0.9


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_groups_of_one_shape_keep_their_own_features(tiny_export, fused, photo, backend, error):
    """At image guidance 1 both groups have one branch: neither may run over the other's buffers."""
    pytest.importorskip(backend)
    tier = Tier(deep_every=2, guidance_deep_every=3)
    options = LATENT | {"image_guidance_scale": 1.0}
    precision = "float32" if backend == "openvino" else None
    other = Engine.from_pretrained(tiny_export, backend, precision=precision)
    pair = [Engine(one.backend, tier).edit(photo, "snow", **options).images for one in (other, fused)]
    assert error(*pair) <= 1e-4


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("quick", None, "exact, fast, turbo"),
        ("fast", {"every": 2}, "the settings are deep_every"),
        ("fast", {"deep_every": 0}, "from 1"),
        ("fast", {"deep_every": 1.5}, "from 1"),
        ("fast", {"guidance_every": True}, "from 1"),
        ("fast", {"guidance_interval": (0.8, 0.2)}, "two shares"),
        ("fast", {"guidance_interval": 0.5}, "two shares"),
        ("fast", {"guidance_interval": ("a", "b")}, "two shares"),
        ("fast", {"guidance_interval": (None, 1)}, "two shares"),
    ],
)
def test_bad_tiers(name, settings, word):
    with pytest.raises(MRCError, match=word):
        make_tier(name, settings)


def test_settings_replace_the_tiers_own():
    assert make_tier("turbo", {"deep_every": 9}).deep_every == 9
    assert make_tier("exact") == EXACT


def test_eager_reuses_no_features(tiny):
    with pytest.raises(MRCError, match="tier='exact'"):
        Engine.from_pretrained(tiny, tier="fast")
