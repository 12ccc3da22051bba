import pytest
import torch

from mrc_edit.bench.loading import LOADERS, prepare_load


def test_both_loaders_load_the_same(plain):
    ours, theirs = (load(plain, None) for load in LOADERS.values())
    for one, two in zip(ours, theirs, strict=True):
        expected = two.state_dict()
        assert one.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("loader", LOADERS)
def test_a_load_is_timed(plain, loader):
    report, _ = prepare_load(loader, plain, None)
    assert 0 < report["load"] < report["ready"] and report["memory"] >= 0
