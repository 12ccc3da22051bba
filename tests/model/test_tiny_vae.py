import inspect
import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny

from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint, save_checkpoint
from mrc_edit.model.graphs import VaeDecoder, VaeEncoder
from mrc_edit.model.seeded import seeded
from mrc_edit.model.settings import TINY_VAE
from mrc_edit.model.tiny_vae import SCALING, TinyVae, make_vae

WIDTHS = (16,) * 4
BASE = {"encoder_block_out_channels": WIDTHS, "decoder_block_out_channels": WIDTHS}


@pytest.fixture(scope="module")
def pair():
    """The same weights in our class and in diffusers'."""
    ours, theirs = seeded(TinyVae(**BASE)), AutoencoderTiny(**BASE).eval().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_latents_are_those_of_diffusers_unscaled(pair, images):
    ours, theirs = pair
    scaled = theirs.encode(images).latents
    for source in (ours.encode(images).latent_dist.mode(), VaeEncoder(ours)(images)[0]):
        torch.testing.assert_close(source * ours.config.scaling_factor, scaled)
    expected = theirs.decode(scaled).sample
    for decoded in (ours.decode(scaled / ours.config.scaling_factor).sample, VaeDecoder(ours)(scaled)[0]):
        torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


def test_training_draws_no_noise_from_it(pair, images):
    posterior = pair[0].encode(images).latent_dist
    assert torch.equal(posterior.sample(), posterior.mode()) and not posterior.std.any()


def test_it_is_saved_as_diffusers_reads_it(pair, images, tiny, tmp_path):
    ours, theirs = pair
    save_checkpoint(replace(load_checkpoint(tiny), vae=ours), tmp_path / "saved")
    read = AutoencoderTiny.from_pretrained(tmp_path / "saved" / "vae")
    assert torch.equal(read.encode(images).latents, theirs.encode(images).latents)
    assert read.config.scaling_factor == theirs.config.scaling_factor
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderTiny"]
    again = load_checkpoint(tmp_path / "saved").vae
    assert isinstance(again, TinyVae) and again.config.scaling_factor == SCALING
    assert torch.equal(again.encode(images).latent_dist.mode(), ours.encode(images).latent_dist.mode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("upsampling_scaling_factor", 4),
        ("shift_factor", 0.1),
        ("scaling_factor", 0.5),
        ("num_decoder_blocks", (1, 1, 1)),
    ],
)
def test_other_settings_are_refused_by_name(name, value):
    with pytest.raises(MRCError, match=f"vae config has .*{name}="):
        make_vae({"_class_name": "AutoencoderTiny", **BASE, name: value})


def test_no_setting_is_forgotten():
    known = inspect.signature(AutoencoderTiny.__init__).parameters.keys() - {"self"}
    assert known == TINY_VAE | {"upsampling_scaling_factor", "shift_factor", "scaling_factor"}


def test_one_of_another_family_is_refused(tiny, tmp_path):
    """Those of Stable Diffusion 3 and FLUX have 16 channels."""
    from mrc_edit.engine import Engine

    seeded(AutoencoderTiny(**BASE, latent_channels=16)).save_pretrained(tmp_path / "vae")
    with pytest.raises(MRCError, match="8 input and 4 output channels"):
        Engine.from_pretrained(tiny, "eager", vae=tmp_path / "vae")
