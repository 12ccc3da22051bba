import json
import runpy

import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.model import MRCUNet, load_checkpoint
from mrc_edit.model.extend import add_reward_blocks
from mrc_edit.model.rewards import BLOCK_KEYS, REWARD_KEYS, RewardBlock, score_embedding
from mrc_edit.model.seeded import seeded, seeded_checkpoint

SD15 = {
    "sample_size": 64, "in_channels": 8, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip


BLOCKS = ("down 0", "down 1", "mid", "up 0", "up 1")  # of the seeded checkpoint


def inputs():
    random = torch.Generator().manual_seed(5)
    scores = torch.tensor([[5.0, 4.0, 3.0], [0.0, 1.0, 2.5]])
    normal = [torch.randn(shape, generator=random) for shape in ((2, 8, 9, 7), (2, 77, 64), (2, 64))]
    return normal[0], torch.tensor([999.0, 3.0]), normal[1], scores, normal[2]


def golden_error(unet, path):
    golden = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    expected = golden.pop("output")
    with torch.no_grad():
        found = unet(**golden)
    return float((found - expected).norm() / expected.norm())


def test_slim_agrees_with_the_released_implementation(slim, reference):
    assert golden_error(load_checkpoint(slim).unet, reference / "unet_slim.npz") <= 1e-5


def test_full_size_agrees_with_the_released_implementation(reference):
    from accelerate import init_empty_weights

    tensor_for = runpy.run_path(str(reference / "seeded_weights.py"))["tensor_for"]
    with init_empty_weights():
        unet = MRCUNet(**SD15)
    shapes = json.loads((reference / "unet_state_dict_sd15.json").read_text())
    assert {key: list(value.shape) for key, value in unet.state_dict().items()} == shapes
    unet.load_state_dict({key: tensor_for(key, torch.Size(shape)) for key, shape in shapes.items()}, assign=True)
    assert golden_error(unet.eval(), reference / "unet_sd15.npz") <= 1e-5


def test_rewards_add_34_tensors():
    with_rewards, without = (seeded_checkpoint(rewards).unet.state_dict().keys() for rewards in (True, False))
    added = with_rewards - without
    assert len(added) == 34
    assert all(key.startswith(REWARD_KEYS) for key in added)


def test_scores_are_embedded_one_by_one_raw():
    """The release's Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0): cosines first."""
    found = score_embedding(torch.tensor([[5.0, 0.0, 2.5]])).reshape(3, 256).double()
    frequency = 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    for row, score in zip(found, (5.0, 0.0, 2.5), strict=True):
        expected = torch.cat([torch.cos(score * frequency), torch.sin(score * frequency)])
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rewards", [True, False])
def test_rewards_must_fit_the_model(rewards):
    unet = seeded_checkpoint(rewards).unet
    inputs = (torch.zeros(1, 8, 8, 8), 1.0, torch.zeros(1, 77, 64))
    given = {} if rewards else {"reward_scores": torch.zeros(1, 3), "reward_text_embeds": torch.zeros(1, 64)}
    with pytest.raises(MRCError, match="needs both" if rewards else "no reward modules"):
        unet(*inputs, **given)
    with pytest.raises(MRCError, match="reward"):
        unet(*inputs, reward_scores=torch.zeros(1, 3))


def test_blocks_add_a_layer_after_every_block_and_a_type_embedding():
    time = seeded_checkpoint().unet
    blocks = add_reward_blocks(time)
    added = {key: value.shape for key, value in blocks.state_dict().items() if key not in time.state_dict()}
    assert added.pop("reward_type_embedding") == (2, 32)
    assert len(added) == 22 * len(BLOCKS)
    for n, width in enumerate((32, 64, 64, 64, 32)):
        layer = f"reward_blocks.{n}.ca.attention"
        assert added[f"{layer}.self.query.weight"] == (width, width)
        assert added[f"{layer}.self.key.weight"] == added[f"{layer}.self.value.weight"] == (width, 32)
    assert all(key.startswith(REWARD_KEYS) for key in added)


@torch.no_grad()
def test_fresh_reward_blocks_change_nothing():
    time = seeded_checkpoint().unet
    torch.testing.assert_close(add_reward_blocks(time).eval()(*inputs()), time(*inputs()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", range(len(BLOCKS)), ids=BLOCKS)
@torch.no_grad()
def test_every_reward_block_reaches_the_output(n):
    unet = add_reward_blocks(seeded_checkpoint().unet).eval()
    before = unet(*inputs())
    torch.nn.init.normal_(unet.reward_blocks[n].proj_deal["proj_out"].weight, std=0.1)
    assert (unet(*inputs()) - before).norm() / before.norm() > 1e-3


@torch.no_grad()
def test_a_reward_block_reads_the_tokens_and_drops_out_in_training_alone():
    block = seeded(RewardBlock(64, 32, 32))
    hidden, tokens = torch.randn(2, 64, 3, 2), torch.randn(2, 2, 32)
    expected = block(hidden, tokens)
    assert torch.equal(block(hidden, tokens), expected)
    assert not torch.allclose(block(hidden, -tokens), expected)
    block.train()
    assert not torch.allclose(block(hidden, tokens), block(hidden, tokens))


@torch.no_grad()
def test_skips_keep_the_down_blocks_own_outputs():
    unet = seeded(add_reward_blocks(seeded_checkpoint().unet))
    own, taken = [], []
    unet.down_blocks[-1].register_forward_hook(lambda module, args, output: own.append(output[0]))
    unet.up_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: taken.append(kwargs["res_hidden_states_tuple"][-1]), with_kwargs=True
    )
    unet(*inputs())
    assert torch.equal(own[0], taken[0])


def test_gradients_reach_every_tensor_of_the_blocks():
    unet = seeded(add_reward_blocks(seeded_checkpoint().unet)).train().requires_grad_(True)
    unet(*inputs()).square().mean().backward()
    new = {key: value.grad for key, value in unet.named_parameters() if key.startswith(BLOCK_KEYS)}
    assert len(new) == 22 * len(BLOCKS) + 1
    assert [key for key, grad in new.items() if grad is None or not grad.abs().sum()] == []


def test_the_type_embedding_tells_the_tokens_apart():
    unet = seeded(add_reward_blocks(seeded_checkpoint().unet))
    scores, text = inputs()[3:]
    tokens = unet.reward_embedding(scores, text)[1]
    embedding = unet.reward_type_embedding.clone()
    unet.reward_type_embedding.zero_()
    torch.testing.assert_close(tokens - unet.reward_embedding(scores, text)[1], embedding.expand(2, 2, 32))
    assert not torch.equal(embedding[0], embedding[1])


def test_unknown_configurations_are_named():
    with pytest.raises(MRCError, match="colour"):
        MRCUNet(**SD15, colour=3)
    with pytest.raises(MRCError, match="AttnDownBlock2D"):
        MRCUNet(**(SD15 | {"down_block_types": ("AttnDownBlock2D",) * 4}))
    with pytest.raises(MRCError, match=r"'everywhere'; choose one of time, blocks"):
        MRCUNet(**SD15, reward_injection="everywhere")
    with pytest.raises(MRCError, match="rewards is False"):
        MRCUNet(rewards=False, reward_injection="blocks")
    narrow = {"block_out_channels": (8, 12), "norm_num_groups": 4, "attention_head_dim": 4}
    types = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    MRCUNet(**narrow, **types)
    with pytest.raises(MRCError, match="8 heads of a reward layer do not divide 12 channels"):
        MRCUNet(reward_injection="blocks", **narrow, **types)
