"""Widened U-Nets start as the same function."""

import dataclasses

import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.model import MRCUNet, load_checkpoint, save_checkpoint
from mrc_edit.model.extend import add_reward_blocks, add_rewards, keywords, widen_input
from mrc_edit.model.rewards import REWARD_KEYS
from mrc_edit.model.seeded import seeded, seeded_checkpoint


def unet_of(inputs, rewards=False):
    """The seeded U-Net with another number of input channels."""
    config = keywords(seeded_checkpoint(rewards).unet) | {"in_channels": inputs}
    return seeded(MRCUNet(rewards=rewards, **config))


def call(unet, latents, source, *reward):
    """One prediction without gradients; the texts are fixed."""
    sample = latents if source is None else torch.cat([latents, source], dim=1)
    states = torch.randn(2, 77, 64, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        return unet.eval()(sample, torch.tensor([999.0, 3.0]), states, *reward)


def latents(seed):
    return torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_a_widened_input_gives_what_the_narrow_one_gave_for_any_source(scale):
    narrow = unet_of(4)
    wide = widen_input(narrow)
    assert wide.config.in_channels == 8
    assert not wide.rewards
    expected = call(narrow, latents(1), None)
    torch.testing.assert_close(call(wide, latents(1), scale * latents(2)), expected, atol=1e-5, rtol=0)
    assert not torch.equal(call(wide, latents(3), latents(2)), expected)


def test_a_widened_input_learns_from_the_source():
    wide = widen_input(unet_of(4))
    states = torch.randn(2, 77, 64)
    wide(torch.cat([latents(1), latents(2)], dim=1), 5.0, states).square().mean().backward()
    assert (wide.conv_in.weight.grad[:, 4:] != 0).any()


@pytest.mark.parametrize("injection", ["time", "blocks"])
def test_new_rewards_change_nothing_whatever_they_say(injection):
    plain = seeded_checkpoint(rewards=False).unet
    unet = add_rewards(plain, injection)
    assert (unet.rewards, unet.reward_injection) == (True, injection)
    expected = call(plain, latents(1), latents(2))
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        reward = (5 * torch.rand(2, 3, generator=random), 10 * torch.randn(2, 64, generator=random))
        torch.testing.assert_close(call(unet, latents(1), latents(2), *reward), expected, atol=1e-6, rtol=0)


def test_new_rewards_are_all_34_tensors_and_only_the_last_layers_are_zero():
    plain = seeded_checkpoint(rewards=False).unet
    unet = add_rewards(plain)
    old, state = plain.state_dict(), unet.state_dict()
    assert all(torch.equal(state[key], value) for key, value in old.items())
    added = state.keys() - old.keys()
    assert len(added) == 34
    assert all(key.startswith(REWARD_KEYS) for key in added)
    zero = {key for key in added if key.endswith("weight") and not state[key].any()}
    assert zero == {"proj_deal.proj_out.weight", "add_embedding.linear_2.weight", "text_linear2.weight"}


def test_the_zero_layers_receive_gradients_at_once():
    unet = add_rewards(seeded_checkpoint(rewards=False).unet, "blocks")
    sample = torch.cat([latents(1), latents(2)], dim=1)
    unet(sample, 5.0, torch.randn(2, 77, 64), torch.rand(2, 3), torch.randn(2, 64)).square().mean().backward()
    layers = [unet.add_embedding.linear_2, unet.text_linear2, unet.proj_deal["proj_out"]]
    layers += [block.proj_deal["proj_out"] for block in unet.reward_blocks]
    assert all((layer.weight.grad != 0).any() for layer in layers)


def test_the_old_model_is_left_alone():
    for old, widen in ((unet_of(4), widen_input), (unet_of(8), add_rewards), (unet_of(8, True), add_reward_blocks)):
        before = {key: value.clone() for key, value in old.state_dict().items()}
        new = widen(old)
        assert new.training
        assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in new.parameters())
        with torch.no_grad():
            for parameter in new.parameters():
                parameter.add_(1)
        assert all(torch.equal(value, before[key]) for key, value in old.state_dict().items())


def test_from_text_to_image_to_rewards_after_every_block_by_way_of_folders(tmp_path):
    narrow = dataclasses.replace(seeded_checkpoint(rewards=False), unet=unet_of(4))
    save_checkpoint(narrow, tmp_path / "sd")
    unet = add_rewards(widen_input(load_checkpoint(tmp_path / "sd").unet))
    save_checkpoint(dataclasses.replace(narrow, unet=add_reward_blocks(unet)), tmp_path / "mrc")
    loaded = load_checkpoint(tmp_path / "mrc").unet
    assert (loaded.config.in_channels, loaded.reward_injection) == (8, "blocks")
    found = call(loaded, latents(1), latents(2), torch.full((2, 3), 4.0), torch.randn(2, 64))
    torch.testing.assert_close(found, call(narrow.unet, latents(1), None), atol=1e-5, rtol=0)


@pytest.mark.parametrize("inputs", [3, 5, 8, 9])
def test_other_numbers_of_input_channels_are_not_widened(inputs):
    with pytest.raises(MRCError, match=f"{inputs} input and 4 output channels"):
        widen_input(unet_of(inputs))


@pytest.mark.parametrize("inputs", [4, 9])
def test_rewards_need_an_instruct_pix2pix_unet(inputs):
    with pytest.raises(MRCError, match=f"{inputs} input and 4 output channels.* 8 input channels"):
        add_rewards(unet_of(inputs))


def test_what_is_there_already_is_not_added():
    time, plain = seeded_checkpoint().unet, seeded_checkpoint(rewards=False).unet
    with pytest.raises(MRCError, match="has reward modules already"):
        add_rewards(time)
    with pytest.raises(MRCError, match="has reward modules already"):
        add_rewards(add_reward_blocks(time), "blocks")
    with pytest.raises(MRCError, match="after every block already"):
        add_reward_blocks(add_reward_blocks(time))
    with pytest.raises(MRCError, match="no reward modules"):
        add_reward_blocks(plain)
    with pytest.raises(MRCError, match="reward_injection is 'all'; choose one of time, blocks"):
        add_rewards(plain, "all")
