import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """`torch.empty` gives NaN, so that a value no kernel wrote shows."""
    empty_like = torch.empty_like

    def poisoned_empty_like(*args, **kwargs):
        tensor = empty_like(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and tensor.device.type != "meta" else tensor

    monkeypatch.setattr(torch, "empty_like", poisoned_empty_like)
