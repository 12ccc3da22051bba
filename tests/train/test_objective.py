import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from mrc.errors import MRCError
from mrc.train.config import PRESETS, TrainConfig
from mrc.train.loop import learning_rate
from mrc.train.objective import draw, dropped, snr_weights


def test_random_numbers_belong_to_the_sample():
    whole = draw(3, torch.tensor([5, 6, 7, 8]), (4, 2, 2), 1000)
    part = draw(3, torch.tensor([7, 8]), (4, 2, 2), 1000)
    for name in ("noise", "posterior", "timesteps", "condition", "reward"):
        assert torch.equal(getattr(whole, name)[2:], getattr(part, name))
    assert not torch.equal(whole.noise, draw(4, torch.tensor([5, 6, 7, 8]), (4, 2, 2), 1000).noise)
    assert not torch.equal(whole.noise, whole.posterior)


def test_noise_is_normal_and_timesteps_are_even():
    draws = draw(0, torch.arange(400), (4, 4, 4), 1000)
    assert abs(draws.noise.mean()) < 0.02 and abs(draws.noise.std() - 1) < 0.02
    assert 450 < draws.timesteps.float().mean() < 550 and draws.timesteps.min() >= 0 and draws.timesteps.max() < 1000


def test_three_bands_of_one_number():
    draws = draw(0, torch.arange(4000), (1,), 1000)
    no_text, no_image = dropped(draws, 0.05)
    for found in (no_text & ~no_image, no_text & no_image, ~no_text & no_image):
        assert 0.035 < found.float().mean() < 0.065


@given(st.floats(0.5, 10))
def test_min_snr_is_diffusers_own(gamma):
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.arange(0, 1000, 37)
    snr = compute_snr(schedule, timesteps)
    assert torch.allclose(snr_weights(schedule, timesteps, gamma), snr.clamp(max=gamma) / snr)
    assert torch.equal(snr_weights(schedule, timesteps, None), torch.ones(len(timesteps)))


def test_rate_warms_up_and_decays():
    config = TrainConfig("a", "b", "c", steps=100, warmup=10, lr_schedule="cosine", learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[99] < 0.02 and max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [{"stage": 3}, {"reward_injection": "space"}, {"steps": 0}, {"conditioning_dropout": 0.4}, {"resolution": 100},
     {"reward_dropout": 1.5}, {"mixed_precision": "int8"}],
)  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(MRCError, match=next(iter(wrong))):
        TrainConfig("a", "b", "c", **wrong)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name):
    TrainConfig(**({"init": "a", "data": "b", "out": "c"} | PRESETS[name]))
