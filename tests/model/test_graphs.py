"""The graphs against the plain modules: every exact saving changes nothing."""

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch.utils.flop_counter import FlopCounterMode

from mrc_edit.model.checkpoint import without_notes
from mrc_edit.model.extend import add_reward_blocks
from mrc_edit.model.graphs import Conditioner, VaeDecoder
from mrc_edit.model.layers import Upsampler, cross_attentions, resnets
from mrc_edit.model.seeded import seeded, seeded_checkpoint
from mrc_edit.model.step import UNetShallow, UNetStep
from mrc_edit.model.unet import MRCUNet


@pytest.fixture(scope="module", params=["rewards", "plain", "late text", "blocks", "late blocks"])
def unet(request):
    unet = seeded_checkpoint(request.param != "plain").unet
    injection = "blocks" if "blocks" in request.param else "time"
    if not request.param.startswith("late"):
        return seeded(add_reward_blocks(unet)) if injection == "blocks" else unet
    levels = {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),  # as `mini`
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    }
    return seeded(MRCUNet(True, injection, **without_notes(dict(unet.config)) | levels))


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 12)])
@torch.no_grad()
def test_conditioner_and_step_are_the_unet(unet, size):
    random = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    texts, pooled, scores = normal(3, 77, 64), normal(2, 64), torch.tensor([[5.0, 4, 3], [0, 1, 2.5]])
    sample, timesteps = normal(3, 8, *size), torch.tensor([999.0, 500.0, 1.0])
    branch, text, reward = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 1])
    guidance = normal(2, 4)
    guidance[:, 0] += 1 - guidance.sum(dim=1)  # rows sum to one, so conv_out's bias stays whole
    given = (scores, pooled) if unet.rewards else ()
    time_bias, text_kv, *folded = Conditioner(unet)(timesteps, texts, *given)
    rows = reward if unet.rewards else torch.zeros(3, dtype=torch.long)
    for step in range(3):
        found = UNetStep(unet)(
            sample, branch, guidance, time_bias[step, rows], text_kv[text], *(tensor[reward] for tensor in folded)
        )[0]
        rewards = (scores[reward][branch], pooled[reward][branch]) if unet.rewards else ()
        noise = unet(sample[branch], timesteps[step], texts[text], *rewards)
        expected = torch.einsum("bn,nchw->bchw", guidance, noise)
        assert (found - expected).norm() / expected.norm() <= 1e-5


@torch.no_grad()
def test_a_shallow_step_on_its_own_features_is_the_step(unet):
    step_inputs = inputs_of(unet)
    noise, deep = UNetStep(unet)(*step_inputs)
    before, folded = step_inputs[:5], step_inputs[5:]
    shallow = UNetShallow(unet)
    torch.testing.assert_close(shallow(*before, deep, *folded)[0], noise, atol=1e-5, rtol=1e-5)
    assert (shallow(*before, deep * 0.9, *folded)[0] - noise).abs().max() > 1e-3  # it does go on from them


@torch.no_grad()
def test_branches_spread_over_calls_add_up(unet):
    """Also where the rows of the parts do not sum to one: the last bias is counted once."""
    sample, branch, guidance, time_bias, text_kv, *folded = inputs_of(unet)
    whole = UNetStep(unet)(sample, branch, guidance, time_bias, text_kv, *folded)[0]
    parts = [
        UNetStep(unet)(sample, branch[rows], guidance[:, rows], time_bias, text_kv[rows], *folded)[0]
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole, atol=1e-4, rtol=1e-4)


def inputs_of(unet):
    """One step's inputs of two images: P = 3, N = 4, G = 2."""
    random = torch.Generator().manual_seed(4)
    given = (torch.tensor([[5.0, 4, 3]]), torch.randn(1, 64, generator=random)) if unet.rewards else ()
    time_bias, text_kv, *folded = Conditioner(unet)(
        torch.tensor([500.0]), torch.randn(4, 77, 64, generator=random), *given
    )
    guidance = torch.tensor([[7.5, -6.0, 0.0, -0.5], [0.0, 0.0, 1.5, -0.5]])
    sample = torch.randn(3, 8, 8, 8, generator=random)
    spread = [tensor.expand(3, *tensor.shape[1:]) for tensor in folded]
    return [sample, torch.tensor([0, 0, 1, 2]), guidance, time_bias[0].expand(3, -1), text_kv, *spread]


@torch.no_grad()
def test_the_folded_reward_attention_is_the_attention():
    """In float64, where the identity holds to rounding."""
    unet = seeded_checkpoint().unet
    torch.nn.Module.to(unet, torch.float64)
    x, tokens = torch.randn(2, 35, 32, dtype=torch.float64), torch.randn(2, 2, 32, dtype=torch.float64) * 3
    gate, gate_bias, base, update = unet.folded_attention(tokens)
    found = base + update @ torch.sigmoid(gate @ x.transpose(1, 2) + gate_bias)
    torch.testing.assert_close(found.transpose(1, 2), unet.reward_attention(x, tokens), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
@torch.no_grad()
def test_an_upsampler_is_the_block_at_four_ninths_of_its_work(size):
    torch.manual_seed(0)
    block = Upsample2D(6, use_conv=True, out_channels=10)
    x = torch.randn(2, 6, *size)
    with FlopCounterMode(display=False) as plain:
        expected = block(x)
    upsampler = Upsampler(block)
    with FlopCounterMode(display=False) as ours:
        found = upsampler(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert 9 * ours.get_total_flops() == 4 * plain.get_total_flops()


@torch.no_grad()
def test_the_decoder_is_the_vae():
    vae = seeded_checkpoint().vae
    latents = torch.randn(2, 4, 3, 5)
    expected = vae.decode(latents / vae.config.scaling_factor).sample
    torch.testing.assert_close(VaeDecoder(vae)(latents)[0], expected, atol=1e-5, rtol=1e-5)


def test_layers_are_found_in_the_order_of_the_forward_pass():
    unet = seeded_checkpoint().unet
    called = []
    for module in (*resnets(unet), *cross_attentions(unet)):
        module.register_forward_hook(lambda module, *_: called.append(module))
    unet(torch.zeros(1, 8, 8, 8), 1.0, torch.zeros(1, 77, 64), torch.zeros(1, 3), torch.zeros(1, 64))
    assert [m for m in called if m in resnets(unet)] == resnets(unet)
    assert [m for m in called if m in cross_attentions(unet)] == cross_attentions(unet)


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_each_branch_takes_the_reward_of_its_input_in_every_layer(fused):
    """Changing one reward layer's tensors of one input changes that input's branches alone."""
    step = UNetStep(seeded(add_reward_blocks(seeded_checkpoint().unet)), fused)
    sample, branch, _, time_bias, text_kv, *folded = inputs_of(step.unet)
    before = step(sample, branch, torch.eye(4), time_bias, text_kv, *folded)[0]
    start = 0
    for layer in step.unet.reward_layers():
        base = folded[2].clone()
        base[0, start : start + layer.channels] += torch.randn(layer.channels, 1)
        start += layer.channels
        after = step(sample, branch, torch.eye(4), time_bias, text_kv, *folded[:2], base, folded[3])[0]
        assert ((after - before).flatten(1).norm(dim=1) > 1e-3).tolist() == [True, True, False, False]
    assert start == folded[2].shape[1]
