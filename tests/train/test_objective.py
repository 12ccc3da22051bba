from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from mrc_edit.core.errors import MRCError
from mrc_edit.train.config import PRESETS, TrainConfig
from mrc_edit.train.loop import learning_rate
from mrc_edit.train.objective import (
    Batch,
    RewardBatch,
    changed_positions,
    draw,
    dropped,
    prediction_target,
    sample_losses,
    snr_weights,
)


def test_random_numbers_belong_to_the_sample():
    whole = draw(3, torch.tensor([5, 6, 7, 8]), (4, 2, 2), 1000)
    part = draw(3, torch.tensor([7, 8]), (4, 2, 2), 1000)
    for name in ("noise", "posterior", "timesteps", "condition", "reward", "guidance"):
        assert torch.equal(getattr(whole, name)[2:], getattr(part, name))
    assert not torch.equal(whole.noise, draw(4, torch.tensor([5, 6, 7, 8]), (4, 2, 2), 1000).noise)
    assert not torch.equal(whole.noise, whole.posterior)


def test_noise_is_normal_and_timesteps_are_even():
    draws = draw(0, torch.arange(400), (4, 4, 4), 1000)
    assert abs(draws.noise.mean()) < 0.02 and abs(draws.noise.std() - 1) < 0.02
    assert 450 < draws.timesteps.float().mean() < 550 and draws.timesteps.min() >= 0 and draws.timesteps.max() < 1000


@pytest.mark.parametrize(("power", "share"), [(1.0, 0.3), (2.0, 0.51), (4.0, 0.76)])
def test_noisy_timesteps_come_more_often(power, share):
    timesteps = draw(0, torch.arange(2000), (1,), 1000, power).timesteps
    assert abs((timesteps >= 700).float().mean() - share) < 0.04  # 1 - 0.7 ** power
    assert timesteps.min() >= 0 and timesteps.max() < 1000


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


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_what_is_predicted_gives_the_picture(prediction):
    """diffusers' own step finds the edited latents in what the model shall predict, and min-SNR weighs an
    error of the picture alike however it was predicted."""
    schedule = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction, clip_sample=False)
    draws = draw(0, torch.arange(3), (4, 2, 2), 1000)
    edited = torch.linspace(-1, 1, 48).view(3, 4, 2, 2)
    noisy = schedule.add_noise(edited, draws.noise, draws.timesteps)
    target = prediction_target(schedule, edited, draws)
    off = prediction_target(schedule, edited + 0.1, shifted(draws, schedule, 0.1))
    for i, timestep in enumerate(draws.timesteps):
        found = schedule.step(target[i], timestep, noisy[i]).pred_original_sample
        torch.testing.assert_close(found, edited[i], atol=1e-4, rtol=1e-4)
    alphas = schedule.alphas_cumprod[draws.timesteps]
    weighed = snr_weights(schedule, draws.timesteps, 5.0) * (target - off).square().mean((1, 2, 3))
    torch.testing.assert_close(weighed, 0.01 * (alphas / (1 - alphas)).clamp(max=5.0), atol=1e-5, rtol=1e-3)


def shifted(draws, schedule, by):
    """The noise with which a picture that is `by` brighter gives the same noisy latents."""
    alphas = schedule.alphas_cumprod[draws.timesteps].view(-1, 1, 1, 1)
    return replace(draws, noise=draws.noise - by * (alphas / (1 - alphas)).sqrt())


def test_rate_warms_up_and_decays():
    config = TrainConfig("a", "b", "c", steps=100, warmup=10, lr_schedule="cosine", learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[99] < 0.02 and max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [{"stage": 3}, {"reward_injection": "space"}, {"steps": 0}, {"conditioning_dropout": 0.4}, {"resolution": 100},
     {"reward_dropout": 1.5}, {"mixed_precision": "int8"}, {"resolution": 0}, {"workers": -1}, {"lora_rank": 0},
     {"seed": -1}, {"change_weight": -1.0}, {"learning_rate": float("nan")}, {"beta2": 1.0}, {"ema_decay": 2.0},
     {"max_grad_norm": float("inf")}, {"min_snr_gamma": 0.0}, {"weight_decay": "much"}, {"workers": 1.5},
     {"tracker": None}, {"least_score": 6}, {"resolution": 10**9},
     # what would have no effect
     {"reward_injection": "blocks", "stage": 1}, {"reward_injection": "blocks", "stage": "distill"},
     {"reward_dropout": 0.1, "stage": 1}, {"reward_only": "text", "stage": "distill"}, {"photographs": "x"},
     {"data_seed": 1}, {"reward_only": "latents", "shard": True}],
)  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(MRCError, match=next(iter(wrong))):
        TrainConfig("a", "b", "c", **wrong)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name):
    TrainConfig(**({"init": "a", "data": "b", "out": "c"} | PRESETS[name]))


def test_a_cache_takes_no_augmentation():
    with pytest.raises(MRCError, match="--no-augment"):
        TrainConfig("a", "b", "c", cache="d")


def test_dropout_replaces_what_it_drops():
    """Every sample's loss is that of a batch without dropout in which the dropped parts were replaced by hand."""
    inputs = {}

    def editor(sample, timesteps, text, scores, reward_text):
        inputs.update(source=sample[:, 4:], text=text, scores=scores, reward_text=reward_text)
        return sample[:, :4]

    count = 400
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    draws = draw(0, torch.arange(count), (4, 2, 2), 1000)
    batch = Batch(
        source=torch.ones(count, 4, 2, 2),
        edited=torch.zeros(count, 4, 2, 2),
        changed=torch.zeros(count, 2, 2),
        text=torch.ones(count, 3, 5),
        empty_text=torch.full((1, 3, 5), 7.0),
        reward=RewardBatch(torch.full((count, 3), 5.0), torch.ones(count, 5), torch.full((1, 5), 7.0)),
    )
    sample_losses(editor, schedule, batch, draws, conditioning_dropout=0.1, reward_dropout=0.3, min_snr_gamma=None,
                  change_weight=0.0)  # fmt: skip
    no_text, no_image = dropped(draws, 0.1)
    hidden = draws.reward < 0.3
    assert torch.equal((inputs["source"] == 0).all((1, 2, 3)), no_image) and no_image.any()
    assert torch.equal((inputs["text"] == 7).all((1, 2)), no_text) and no_text.any()
    assert torch.equal((inputs["scores"] == 2.5).all(1), hidden) and 0.2 < hidden.float().mean() < 0.4
    assert torch.equal((inputs["reward_text"] == 7).all(1), hidden)
    assert inputs["text"][~no_text].eq(1).all() and inputs["scores"][~hidden].eq(5).all()


def test_changed_positions_weigh_more():
    """An error at a changed position counts again in the mean over those alone."""
    source = torch.zeros(2, 4, 6, 6)
    edited = source.clone()
    edited[0, 2, 0, 1] = -1.0  # the first sample changes at one position and so three by four count, the other nowhere
    edited[1, 0, 1, 1] = 0.1
    changed = changed_positions(source, edited)
    expected = torch.zeros(2, 6, 6)
    expected[0, :3, :4] = 1
    assert torch.equal(changed, expected)
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    draws = draw(0, torch.arange(2), (4, 6, 6), 1000)
    error = torch.ones(6, 6)
    error[0, 0] = 7.0
    batch = Batch(source, edited, changed, text=torch.ones(2, 3, 5), empty_text=torch.ones(1, 3, 5))

    def losses(weight):
        return sample_losses(lambda *_: draws.noise + error.sqrt(), schedule, batch, draws, conditioning_dropout=0.0,
                             reward_dropout=0.0, min_snr_gamma=None, change_weight=weight)  # fmt: skip

    assert losses(0.0).tolist() == pytest.approx([42 / 36, 42 / 36])
    assert losses(3.0).tolist() == pytest.approx([42 / 36 + 3 * 18 / 12, 42 / 36])
