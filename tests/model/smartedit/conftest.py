"""SmartEdit's golden data: a small part in golden.npz, all of it where `MRC_REFERENCE` has a sibling `smartedit`.

`golden.npz` and `tokenizer.model` are cut from that golden data; see its README for how it was made.
"""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch


def weight(key: str, shape) -> torch.Tensor:
    """The golden data's weight of that released name: seeded by the name, scaled by the inputs of a row."""
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if noise.ndim > 1:
        return noise / noise[0].numel() ** 0.5
    return 1 + 0.1 * noise if key.endswith("weight") else 0.05 * noise


@pytest.fixture(scope="session")
def golden():
    return np.load(Path(__file__).with_name("golden.npz"))


@pytest.fixture(scope="session")
def released_golden(reference) -> Path:
    """The folder of all golden data of SmartEdit."""
    folder = reference.parent / "smartedit" / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden data of SmartEdit at {folder}")
    return folder


@pytest.fixture(scope="session")
def seed_weights():
    """`seed_weights(module, root="")`: give a module the golden data's weights, in evaluation mode."""

    @torch.no_grad()
    def seed(module, root: str = ""):
        for key, value in module.state_dict().items():
            value.copy_(weight(root + key, value.shape))
        return module.eval().requires_grad_(False)

    return seed
