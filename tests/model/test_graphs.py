"""The five graphs against the plain modules: every exact saving changes nothing."""

import pytest
import torch

from mrc.errors import MRCError
from mrc.model.checkpoint import without_notes
from mrc.model.graphs import Conditioner, UNetStep, cross_attentions, resnets
from mrc.model.seeded import seeded, seeded_checkpoint
from mrc.model.unet import MRCUNet
from mrc.model.widen import add_reward_blocks


@pytest.fixture(scope="module", params=["rewards", "plain", "late text"])
def unet(request):
    unet = seeded_checkpoint(request.param != "plain").unet
    if request.param != "late text":
        return unet
    levels = {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),  # as `mini`
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    }
    return seeded(MRCUNet(True, **without_notes(dict(unet.config)) | levels))


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (16, 12)])
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
def test_the_folded_reward_attention_is_the_attention():
    """In float64, where the identity holds to rounding."""
    unet = seeded_checkpoint().unet
    torch.nn.Module.to(unet, torch.float64)
    x, tokens = torch.randn(2, 35, 32, dtype=torch.float64), torch.randn(2, 2, 32, dtype=torch.float64) * 3
    gate, gate_bias, base, update = unet.folded_attention(tokens)
    found = base + update @ torch.sigmoid(gate @ x.transpose(1, 2) + gate_bias)
    torch.testing.assert_close(found.transpose(1, 2), unet.reward_attention(x, tokens), atol=1e-12, rtol=1e-12)


def test_layers_are_found_in_the_order_of_the_forward_pass():
    unet = seeded_checkpoint().unet
    called = []
    for module in (*resnets(unet), *cross_attentions(unet)):
        module.register_forward_hook(lambda module, *_: called.append(module))
    unet(torch.zeros(1, 8, 8, 8), 1.0, torch.zeros(1, 77, 64), torch.zeros(1, 3), torch.zeros(1, 64))
    assert [m for m in called if m in resnets(unet)] == resnets(unet)
    assert [m for m in called if m in cross_attentions(unet)] == cross_attentions(unet)


@pytest.mark.parametrize("graph", [Conditioner, UNetStep])
def test_rewards_after_every_block_are_refused(graph):
    with pytest.raises(MRCError, match=r"'blocks', which is for training and eager editing.*take 'time'"):
        graph(add_reward_blocks(seeded_checkpoint().unet))
