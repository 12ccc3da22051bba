import numpy as np
import pytest
import torch

from mrc_edit.core.fidelity import relative_error
from mrc_edit.model.smartedit.bim import BIM, PositionMap, text_states

TINY = {"width": 48, "text_width": 64, "channels": 32, "hidden": 96}
RELEASED = {"width": 1024, "text_width": 768, "channels": 320, "hidden": 2048}
NEAR = 5e-6  # a LayerNorm eps of 1e-6 in place of 1e-5 differs by 2.9e-5


@pytest.fixture(scope="module")
def tiny_bim(seed_weights):
    return seed_weights(BIM(**TINY))


def inputs(arrays, start=""):
    return (torch.from_numpy(arrays[f"{start}{name}"]) for name in ("clip_image_feature", "query_output"))


def test_text_and_image_part_are_those_of_the_release(tiny_bim, golden):
    text, image = tiny_bim(*inputs(golden, "bim_"), 6, 10)
    assert relative_error(text.numpy(), golden["bim_text"]) <= NEAR
    assert image.shape == (1, 32, 6, 10)
    assert relative_error(image.numpy(), golden["bim_image_6x10"]) <= NEAR


def test_positions_are_those_of_the_release(tiny_bim, golden):
    positions = tiny_bim.pe_layer(4).T.unflatten(1, (4, 4))
    assert relative_error(positions.numpy(), golden["bim_position"]) <= NEAR


def test_positions_of_a_transposed_square_swap_the_frequencies():
    """Patch (y, x) has the features of patch (x, y) when the two rows of frequencies change places."""
    positions = PositionMap(16)
    swapped = PositionMap(16)
    swapped.positional_encoding_gaussian_matrix = positions.positional_encoding_gaussian_matrix.flip(0)
    as_square = positions(5).unflatten(0, (5, 5))
    assert torch.allclose(swapped(5).unflatten(0, (5, 5)), as_square.transpose(0, 1), atol=1e-5)
    assert not torch.allclose(as_square, as_square.transpose(0, 1), atol=0.1)


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (4, 4)])
def test_all_tiny_cases(tiny_bim, released_golden, size):
    arrays = np.load(released_golden / "bim_tiny.npz")
    text, image = tiny_bim(*inputs(arrays), *size)
    assert relative_error(text.numpy(), arrays["text"]) <= NEAR
    assert relative_error(image.numpy(), arrays["image_{}x{}".format(*size)]) <= NEAR


def test_full_size_made_smaller(seed_weights, released_golden):
    """16 → 12 columns, without antialiasing."""
    arrays = np.load(released_golden / "bim_7b.npz")
    text, image = seed_weights(BIM(**RELEASED))(*inputs(arrays), 20, 12)
    assert relative_error(text.numpy(), arrays["text"]) <= NEAR
    assert relative_error(image.numpy(), arrays["image_20x12"]) <= NEAR


def test_untrained_it_changes_nothing_and_learns(golden):
    module = BIM(**TINY)
    features, queries = inputs(golden, "bim_")
    text, image = module(features, queries, 6, 10)
    assert torch.equal(text_states(queries, text), queries)
    assert not image.any()
    (text.sum() + image.sum()).backward()
    assert module.dimension_reduction_head_zeroconv.weight.grad.abs().sum() > 0
    assert "pe_layer.positional_encoding_gaussian_matrix" in module.state_dict()
    assert len(module.state_dict()) == 89


def test_half_of_the_text_part_is_added():
    assert text_states(torch.ones(1), torch.ones(1)).item() == 1.5
