"""Number formats emulated in chosen layers."""

import copy

import pytest
import torch
from torch import nn

from mrc_edit.export.emulate import HALVES, Layer, Observed, Quantized, Rounded, emulated, scaled
from mrc_edit.model.graphs import graph_module
from mrc_edit.model.seeded import seeded_checkpoint


class Net(nn.Module):
    """Two products with a sum and an activation between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(torch.nn.functional.silu(hidden + x))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def observed(module, *inputs):
    layers = {}
    with Observed(module, layers):
        module(*inputs)
    return layers


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_layers_take_the_operators_that_follow(net, x):
    layers = observed(net, x)
    assert list(layers) == ["first", "second"]
    hidden = net.first(x)
    for name, met in (("first", [x, net.first.weight, hidden, hidden + x]), ("second", [net.second.weight])):
        assert layers[name].peak >= max(float(tensor.abs().max()) for tensor in met)
    entering = torch.nn.functional.silu(hidden + x)
    assert (layers["second"].low, layers["second"].high) == (float(entering.min()), float(entering.max()))


def test_halves_are_rounded_in_chosen_layers_alone(net, x):
    half = torch.float16
    with Rounded(net, half, ["second"]):
        found = net(x)
    entering = torch.nn.functional.silu(net.first(x) + x).to(half).float()
    weight, bias = net.second.weight.to(half).float(), net.second.bias.to(half).float()
    assert torch.equal(found, torch.nn.functional.linear(entering, weight, bias).to(half).float())
    with Rounded(net, half, []):
        assert torch.equal(net(x), net.second(torch.nn.functional.silu(net.first(x) + x)))


@pytest.mark.parametrize("number", HALVES)
def test_the_whole_graph_errs_as_one_of_that_type(number):
    """The same module converted, as PyTorch computes it."""
    module = graph_module("VaeDecoder", seeded_checkpoint().vae).eval()
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        exact = module(latents)[0]
        real = copy.deepcopy(module).to(HALVES[number])(latents)[0]
        with emulated(module, number, observed(module, latents), {}):
            found = module(latents)[0]
    assert 0.7 < distance(found, exact) / distance(real, exact) < 1.4


def test_int8_has_one_scale_a_tensor_and_an_output_channel(net, x):
    with Quantized(net, "int8", ["first"], {"first": Layer("first", low=-2.0, high=1.0)}):
        found = net(x)
    step = 2.0 / 127
    activations = (x / step).round().clamp(-127, 127) * step
    steps = net.first.weight.abs().amax(dim=1, keepdim=True) / 127
    hidden = torch.nn.functional.linear(activations, (net.first.weight / steps).round() * steps, net.first.bias)
    assert torch.allclose(found, net.second(torch.nn.functional.silu(hidden + x)), atol=1e-6)


def test_fp8_has_three_bits_after_the_first():
    values = torch.tensor([448.0, 1.0, 1.0625, 1.12, 0.3, -500.0])
    assert scaled(values, torch.tensor(448.0), "fp8").tolist() == [448.0, 1.0, 1.0, 1.125, 0.3125, -448.0]


def test_what_overflows_is_not_finite(net, x):
    net.first.weight *= 1e6
    assert observed(net, x)["first"].peak > 65504
    with Rounded(net, torch.float16, ["first"]):
        assert not torch.isfinite(net(x)).all()
    with Rounded(net, torch.bfloat16, ["first"]):
        assert torch.isfinite(net(x)).all()
