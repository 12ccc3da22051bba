import pytest

from mrc_edit.bench.scaling import markdown, measure, operations
from mrc_edit.model import load_checkpoint


def test_operations_grow_with_what_is_computed(tiny):
    checkpoint = load_checkpoint(tiny)
    checkpoint.unet.to("meta")
    one = operations(checkpoint, 64, 1)
    assert operations(checkpoint, 64, 2) == pytest.approx(2 * one, rel=0.01)
    # convolutions grow fourfold with the side, self-attention sixteenfold
    assert 4 * one < operations(checkpoint, 128, 1) < 16 * one


def test_rows_are_held_to_the_first(tiny, tiny_export):
    rows = measure(tiny, tiny_export, "onnxruntime", [(64, 1), (128, 1), (64, 2)], 1)
    assert rows[0]["operations_ratio"] == rows[0]["seconds_ratio"] == 1
    assert all(row["seconds"] > 0 for row in rows)
    assert len(markdown(rows).splitlines()) == 5
