import json

import numpy as np
import pytest
import torch

from mrc.errors import MRCError
from mrc.model import MRCUNet, load_checkpoint
from mrc.model.rewards import REWARD_KEYS, score_embedding
from mrc.model.seeded import seeded_checkpoint

SD15 = {
    "sample_size": 64, "in_channels": 8, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip


def golden_error(unet, path):
    golden = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    expected = golden.pop("output")
    with torch.no_grad():
        found = unet(**golden)
    return float((found - expected).norm() / expected.norm())


def test_slim_agrees_with_the_released_implementation(slim, reference):
    assert golden_error(load_checkpoint(slim).unet, reference / "unet_slim.npz") <= 1e-5


def test_full_size_agrees_with_the_released_implementation(reference, monkeypatch):
    from accelerate import init_empty_weights

    monkeypatch.syspath_prepend(reference)
    from seeded_weights import tensor_for

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


def test_unknown_configurations_are_named():
    with pytest.raises(MRCError, match="colour"):
        MRCUNet(**SD15, colour=3)
    with pytest.raises(MRCError, match="AttnDownBlock2D"):
        MRCUNet(**(SD15 | {"down_block_types": ("AttnDownBlock2D",) * 4}))
