import pytest

from mrc_edit.bench import scaling
from mrc_edit.bench.flop_count import count_operations, empty_checkpoint
from mrc_edit.bench.report import table
from mrc_edit.bench.workload import Workload
from mrc_edit.core.errors import MRCError


def test_operations_grow_with_what_is_computed(tiny):
    def operations(size, batch, **guidance):
        return count_operations(checkpoint, size, Workload(size, 1, batch, **guidance).plan())

    checkpoint = empty_checkpoint(tiny)
    one = operations(64, 1)
    assert operations(64, 2) == pytest.approx(2 * one, rel=0.01)
    # convolutions grow fourfold with the side, self-attention sixteenfold
    assert 4 * one < operations(128, 1) < 16 * one
    # image guidance 1 leaves out one of three branches
    assert 0.6 * one < operations(64, 1, image_guidance=1.0) < 0.7 * one


def test_rows_are_relative_to_the_first(tiny, tiny_export):
    rows = scaling.scaling(tiny, tiny_export, "onnxruntime", [(64, 1), (128, 1), (64, 2)], 1)
    assert rows[0]["operations_ratio"] == rows[0]["seconds_ratio"] == 1
    assert [(row["size"], row["batch"]) for row in rows] == [(64, 1), (128, 1), (64, 2)]
    assert all(row["seconds"] > 0 for row in rows)
    assert len(table(scaling.COLUMNS, rows).markdown().splitlines()) == 5


@pytest.mark.parametrize("options", [("--sizes", "256,big"), ("--batches", "0"), ("--rounds", "0")])
def test_bad_options(tiny, options):
    with pytest.raises(MRCError, match=options[0]):
        scaling.run(scaling.arguments().parse_args([str(tiny), str(tiny), *options]))
