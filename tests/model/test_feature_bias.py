"""SmartEdit's feature bias: added to what `conv_in` gives, before the reward layer."""

import json
import runpy

import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.model.extend import add_reward_blocks, rebuilt
from mrc_edit.model.seeded import seeded_checkpoint
from mrc_edit.model.unet import MRCUNet


@pytest.mark.parametrize("name", ["unet_tiny", "unet_slim", "unet_reward_slim"])
@torch.no_grad()
def test_it_agrees_with_the_released_implementation(reference, name):
    path = reference.parent / "smartedit" / "golden" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no golden data at {path}")
    golden = np.load(path)
    array = {key: torch.from_numpy(golden[key]) for key in golden.files if key != "config"}
    unet = MRCUNet("reward_scores" in array, feature_bias=True, **json.loads(str(golden["config"]))["unet"])
    tensor_for = runpy.run_path(str(reference / "seeded_weights.py"))["tensor_for"]
    unet.load_state_dict({key: tensor_for(key, value.shape) for key, value in unet.state_dict().items()})
    states = torch.cat([array["text_states"], array["null_states"], array["null_states"]])
    rewards = {key: array[key].expand(3, -1) for key in ("reward_scores", "reward_text_embeds") if key in array}
    found = unet.eval()(
        array["sample"], array["timestep"], states, feature_bias=array["image_feature"].expand(3, -1, -1, -1), **rewards
    )
    assert (found - array["output"]).norm() / array["output"].norm() <= 1e-5


def biased(rewards):
    return rebuilt(seeded_checkpoint(rewards).unet, feature_bias=True).eval()


@pytest.mark.parametrize("rewards", [True, False])
@torch.no_grad()
def test_zero_is_the_plain_model(rewards):
    random = torch.Generator().manual_seed(2)
    inputs = [torch.randn(2, 8, 8, 8, generator=random), 7.0, torch.randn(2, 77, 64, generator=random)]
    inputs += [torch.full((2, 3), 4.0), torch.randn(2, 64, generator=random)] if rewards else []
    unet, features = biased(rewards), torch.randn(2, 32, 8, 8, generator=random)
    expected = seeded_checkpoint(rewards).unet(*inputs)
    assert torch.equal(unet(*inputs, feature_bias=torch.zeros_like(features)), expected)
    assert (unet(*inputs, feature_bias=features) - expected).norm() / expected.norm() > 0.1


def test_it_must_fit_the_model():
    inputs = torch.zeros(1, 8, 8, 8), 1.0, torch.zeros(1, 77, 64)
    with pytest.raises(MRCError, match="needs a feature_bias"):
        biased(False)(*inputs)
    with pytest.raises(MRCError, match="takes no feature_bias"):
        seeded_checkpoint(False).unet(*inputs, feature_bias=torch.zeros(1, 32, 8, 8))


def test_a_rebuilt_unet_keeps_it():
    assert add_reward_blocks(biased(True)).feature_bias
