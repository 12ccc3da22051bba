"""Every setting of diffusers' models is computed as diffusers computes it, or refused by name."""

import inspect

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from mrc_edit.core.errors import MRCError
from mrc_edit.model.checkpoint import without_notes
from mrc_edit.model.graphs import Conditioner, VaeDecoder, VaeEncoder
from mrc_edit.model.seeded import seeded, seeded_checkpoint
from mrc_edit.model.settings import UNET, VAE, check_vae_settings
from mrc_edit.model.step import UNetStep
from mrc_edit.model.unet import MRCUNet

COMPUTED = {
    "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "mid_block_scale_factor": 1.5, "dropout": 0.5,
    "norm_num_groups": 8, "norm_eps": 1e-2, "transformer_layers_per_block": 2, "attention_head_dim": 4,
    "use_linear_projection": True, "upcast_attention": True, "resnet_out_scale_factor": 1.5, "conv_in_kernel": 5,
    "conv_out_kernel": 5, "layers_per_block": 2, "act_fn": "swish",
    "projection_class_embeddings_input_dim": 768, "addition_time_embed_dim": 8, "addition_embed_type_num_heads": 8,
}  # fmt: skip
OTHER = {
    "center_input_sample": True, "mid_block_type": "UNetMidBlock2D", "only_cross_attention": True, "act_fn": "gelu",
    "reverse_transformer_layers_per_block": [[1], [1]], "encoder_hid_dim": 64, "encoder_hid_dim_type": "text_proj",
    "num_attention_heads": 4, "dual_cross_attention": True, "class_embed_type": "timestep",
    "addition_embed_type": "text", "num_class_embeds": 3,
    "resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True, "time_embedding_type": "fourier",
    "time_embedding_dim": 64, "time_embedding_act_fn": "silu", "timestep_post_act": "silu", "time_cond_proj_dim": 256,
    "attention_type": "gated", "class_embeddings_concat": True,
    "mid_block_only_cross_attention": True, "cross_attention_norm": "layer_norm",
}  # fmt: skip
SHAPES = {"sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"}
BASE = without_notes(dict(seeded_checkpoint(rewards=False).unet.config))
VAE_BASE = without_notes(dict(seeded_checkpoint().vae.config))


def test_no_setting_is_forgotten():
    """A setting that a later diffusers adds appears here, and must be computed or refused."""
    known = inspect.signature(UNet2DConditionModel.__init__).parameters.keys() - {"self"}
    assert known == SHAPES | {"cross_attention_dim"} | COMPUTED.keys() | OTHER.keys()
    assert known - OTHER.keys() == UNET  # act_fn is in OTHER: one of its values is computed


@pytest.mark.parametrize("name", COMPUTED)
@torch.no_grad()
def test_a_setting_is_computed_as_diffusers_does(name):
    config = BASE | {name: COMPUTED[name]}
    unet = seeded(MRCUNet(False, **config)).eval()
    theirs = UNet2DConditionModel(**config).eval()
    theirs.load_state_dict(unet.state_dict())
    draw = torch.Generator().manual_seed(1)
    sample, text = torch.randn(1, 8, 8, 12, generator=draw), torch.randn(1, 77, 64, generator=draw)
    timestep = torch.tensor([500.0])
    expected = theirs(sample, timestep, text).sample
    one, first = torch.ones(1, 1), torch.zeros(1, dtype=torch.long)
    time_bias, text_kv = Conditioner(unet)(timestep, text)
    step = UNetStep(unet)(sample, first, one, time_bias[0], text_kv)[0]
    for found in (unet(sample, timestep, text), step):
        assert (found - expected).norm() / expected.norm() <= 1e-5


@pytest.mark.parametrize("name", OTHER)
def test_other_settings_are_refused_by_name(name):
    with pytest.raises(MRCError, match=f"unet config has {name}="):
        MRCUNet(False, **BASE | {name: OTHER[name]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("act_fn", "gelu"), ("norm_num_groups", 8), ("use_quant_conv", False), ("use_post_quant_conv", False),
        ("mid_block_add_attention", False), ("layers_per_block", 2), ("force_upcast", False), ("scaling_factor", 0.5),
    ],
)  # fmt: skip
@torch.no_grad()
def test_a_vae_setting_is_computed_as_diffusers_does(name, value):
    config = VAE_BASE | {name: value}
    check_vae_settings(config)
    vae = seeded(AutoencoderKL(**config)).eval()
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    found, expected = VaeDecoder(vae)(latents)[0], vae.decode(latents / vae.config.scaling_factor).sample
    assert (found - expected).norm() / expected.norm() <= 1e-5
    torch.testing.assert_close(VaeEncoder(vae)(expected)[0], vae.encode(expected).latent_dist.mode())


@pytest.mark.parametrize(
    ("name", "value"),
    [("shift_factor", 0.1), ("latents_mean", [0.0] * 4), ("latents_std", [2.0] * 4),
     ("up_block_types", ("AttnUpDecoderBlock2D",) * 4)],
)  # fmt: skip
def test_other_vae_settings_are_refused_by_name(name, value):
    with pytest.raises(MRCError, match=f"vae config has {name}"):
        check_vae_settings(VAE_BASE | {name: value})


def test_no_vae_setting_is_forgotten():
    known = inspect.signature(AutoencoderKL.__init__).parameters.keys() - {"self"}
    assert known == VAE | {"up_block_types", "shift_factor", "latents_mean", "latents_std"}
