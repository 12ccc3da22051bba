import pytest

from mrc_edit.bench.step_work import StepWork, count_step
from mrc_edit.bench.workload import Workload
from mrc_edit.model import load_checkpoint


def test_shares_by_hand():
    work = StepWork(operations=4e9, parameters=1_000_000)
    limits = {"float32": 10e9, "copy": 1e9}
    assert work.shares(0.5, "float32", limits) == {"product_share": pytest.approx(0.8), "copy_share": 0.008}
    assert work.shares(0.5, "bfloat16", limits) == {"product_share": None, "copy_share": 0.004}  # no such limit
    assert StepWork().shares(0.5, "float32", limits) == {"product_share": None, "copy_share": None}


def test_a_checkpoint_is_counted_without_its_weights(tiny):
    work = count_step(tiny, Workload(64, 1))
    every = sum(weight.numel() for weight in load_checkpoint(tiny).unet.parameters())
    assert 1e8 < work.operations < 1e10
    assert 0.5 * every < work.parameters < every  # without what the conditioner reads
    assert work.note == ""


def test_an_export_says_why_nothing_is_counted():
    work = count_step(None, Workload(64, 1))
    assert (work.operations, work.parameters) == (None, None) and "export" in work.note
