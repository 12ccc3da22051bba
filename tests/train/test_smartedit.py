"""The released training forward on four samples: smartedit.npz holds its draws, loss and gradients.

Cut from SmartEdit's golden data (train_tiny.npz; TencentARC/SmartEdit a65f126 in float32, no dropout); `states` and
`features` were computed from its token ids and pictures with the golden language model and CLIP.
"""

import copy
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from mrc_edit.core.fidelity import relative_error
from mrc_edit.model.smartedit.bim import BIM
from mrc_edit.model.smartedit.qformer import QFormer
from mrc_edit.model.unet import MRCUNet
from mrc_edit.train.config import TrainConfig
from mrc_edit.train.distill import distill_losses, guided_prediction, open_distillation
from mrc_edit.train.objective import Batch, Draws, sample_losses
from mrc_edit.train.smartedit import SmartEditor

UNET = {
    "sample_size": 8, "in_channels": 8, "out_channels": 4, "cross_attention_dim": 64, "attention_head_dim": 8,
    "block_out_channels": (32, 64), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


SCHEDULE = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@torch.no_grad()
def seeded(module):
    """The golden data's weights: seeded by their released names, scaled by the inputs of a row."""
    for key, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        small = 1 + 0.1 * noise if key.endswith("weight") else 0.05 * noise
        value.copy_(noise / noise[0].numel() ** 0.5 if noise.ndim > 1 else small)
    return module.eval()


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(array) for name, array in np.load(Path(__file__).with_name("smartedit.npz")).items()}


@pytest.fixture(scope="module")
def editor():
    unet = MRCUNet(rewards=False, feature_bias=True, **UNET)
    text_encoder = torch.nn.Identity()  # the empty text comes encoded
    return SmartEditor(seeded(unet), text_encoder, seeded(QFormer(77, 64, 4, 128, 4, 64)), seeded(BIM(48, 64, 32, 96)))


def drawn(golden):
    nothing = torch.zeros(())
    draws = Draws(golden["noise"], nothing, golden["timesteps"], golden["condition"], nothing, torch.rand(4, 2))
    batch = Batch(
        golden["source"], golden["edited"], torch.zeros(4, 8, 8), golden["states"], golden["empty_text"],
        features=golden["features"],
    )  # fmt: skip
    return batch, draws


def losses(editor, golden):
    batch, draws = drawn(golden)
    options = {"conditioning_dropout": 0.05, "reward_dropout": 0.0, "min_snr_gamma": None, "change_weight": 0.0}
    return sample_losses(editor, SCHEDULE, batch, draws, **options)


def test_loss_and_gradients_are_the_releases(editor, golden):
    """Sample 3 is of a data set without edits, which the release weighs with 0; ours has none."""
    loss = (losses(editor, golden) * golden["weight"]).mean()
    assert abs(loss / golden["loss"] - 1) <= 1e-6
    editor.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in editor.named_parameters()}
    for name, wanted in golden.items():
        if name.startswith("grad:"):
            key = name.removeprefix("grad:").removeprefix("unet.")
            (found,) = (gradient for own, gradient in gradients.items() if own.split(".", 1)[1] == key)
            assert relative_error(found, wanted) <= 1e-5, name


def test_only_the_text_states_are_hidden(editor, golden):
    """Samples 0 and 1 lose their text: the Q-Former still reaches them, by the feature map."""
    editor.zero_grad()
    losses(editor, golden)[:2].sum().backward()
    assert editor.qformer.sd_query_tokens.grad.abs().max() > 0
    assert editor.bim.dimension_reduction_head_qformer_out.weight.grad.abs().max() == 0
    assert editor.bim.dimension_reduction_head_zeroconv.weight.grad.abs().max() > 0


def test_it_is_distilled_with_its_feature_map(editor, golden):
    """A teacher without guidance is the editor itself, and only the U-Net learns."""
    student, (batch, draws) = copy.deepcopy(editor), drawn(golden)
    student.unet.embed_guidance()
    student.requires_grad_(False).unet.requires_grad_(True)
    distillation = open_distillation(student)
    sample, timesteps, nobody = torch.cat([golden["edited"], golden["source"]], 1), draws.timesteps, torch.zeros(4) > 0
    with torch.no_grad():
        found = guided_prediction(distillation.teacher, batch, golden["edited"], golden["source"], timesteps, nobody,
                                  (None, None), torch.ones(4, 2))  # fmt: skip
        expected = editor(sample, timesteps, batch.text, None, None, batch.features, batch.empty_text, nobody)
    assert relative_error(found, expected) <= 1e-6
    config = TrainConfig("a", "b", "c", stage="distill")
    distill_losses(student, distillation, SCHEDULE, batch, draws, config).sum().backward()
    learning = {name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == {"unet"} and student.unet.guidance_embedding.weight.grad.any()
