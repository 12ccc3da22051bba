import os
import sys

import pytest

from mrc_edit.bench import machine
from mrc_edit.core.errors import MRCError


def test_the_machine_is_described():
    described = machine.describe_machine()
    assert described["cpu"] and 1 <= described["threads"] <= described["cores"]
    assert {"numpy", "torch", "mrc-edit"} <= described["packages"].keys()
    assert described["date"].count(":") == 3  # with the time zone
    assert sys.orig_argv[-1] in described["command"]


@pytest.mark.parametrize("with_torch", [False, True])
def test_limits_are_measured(monkeypatch, with_torch):
    monkeypatch.setattr(machine, "LARGEST", 256)
    monkeypatch.setattr(machine, "COPY_BYTES", 1 << 20)
    limits = machine.prepare_limits(with_torch)()
    assert set(limits) == {"float32", "copy"} | ({"bfloat16"} if with_torch else set())
    assert all(value > 0 for value in limits.values())


def test_a_slow_precision_gets_smaller_matrices():
    assert machine.product_size(lambda size: 0.0) == machine.LARGEST
    assert machine.product_size(lambda size: 1.0) == 256
    assert machine.product_size(lambda size: 0.25 * (size / 1024) ** 3) == 1024


def test_threads_are_limited_within_the_block():
    before, variable = machine.usable_cores(), os.environ.get("OMP_NUM_THREADS")
    with machine.limited_threads(1):
        assert machine.usable_cores() == before[:1] and os.environ["OMP_NUM_THREADS"] == "1"
    assert machine.usable_cores() == before and os.environ.get("OMP_NUM_THREADS") == variable
    with machine.limited_threads(None):
        assert machine.usable_cores() == before
    for count in (0, len(before) + 1):
        with pytest.raises(MRCError, match="--threads"), machine.limited_threads(count):
            pass
