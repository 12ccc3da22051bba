import numpy as np
import pytest
import torch

from mrc_edit.core.fidelity import relative_error
from mrc_edit.model.smartedit.qformer import QFormer

TINY = {"queries": 77, "width": 64, "heads": 4, "feed_forward": 128, "layers": 4, "context_width": 64}
RELEASED = {"queries": 77, "width": 768, "heads": 12, "feed_forward": 3072, "layers": 6, "context_width": 4096}
NEAR = 1e-5


@pytest.fixture(scope="module")
def tiny_qformer(seed_weights):
    return seed_weights(QFormer(**TINY))


def test_queries_are_those_of_the_release(tiny_qformer, golden):
    states = torch.from_numpy(golden["qformer_encoder_hidden_states"])
    assert relative_error(tiny_qformer(states).numpy(), golden["qformer_output"]) <= NEAR


def test_masked_states_do_not_count(tiny_qformer, golden):
    states = torch.from_numpy(golden["qformer_encoder_hidden_states"])
    mask = torch.from_numpy(golden["qformer_encoder_attention_mask"])
    assert not mask.all()
    masked = tiny_qformer(states, mask)
    assert relative_error(masked.numpy(), golden["qformer_output_masked"]) <= NEAR
    changed = torch.where(mask[..., None], states, 7.0)
    assert torch.equal(tiny_qformer(changed, mask), masked)
    assert torch.equal(tiny_qformer(states, torch.ones_like(mask)), tiny_qformer(states))


def test_full_size(seed_weights, released_golden):
    arrays = np.load(released_golden / "qformer_7b.npz")
    output = seed_weights(QFormer(**RELEASED))(torch.from_numpy(arrays["encoder_hidden_states"]))
    assert relative_error(output.numpy(), arrays["output"]) <= NEAR


def test_training_drops_and_learns(golden):
    torch.manual_seed(0)
    module = QFormer(**TINY).train()
    states = torch.from_numpy(golden["qformer_encoder_hidden_states"])
    first, second = module(states), module(states)
    assert not torch.equal(first, second)  # dropout
    first.square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert torch.equal(module.eval()(states), module(states))
