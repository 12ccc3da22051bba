import numpy as np
import onnxruntime
import pytest

from mrc_edit.engine.backends.rows import gather_graph, varint


@pytest.mark.parametrize("axis", [0, 1])
def test_it_takes_rows_as_numpy_does(axis):
    data = np.random.RandomState(0).standard_normal((3, 4, 2)).astype(np.float32)
    index = np.array([2, 0, 0, 1])
    session = onnxruntime.InferenceSession(gather_graph(axis), providers=["CPUExecutionProvider"])
    (rows,) = session.run(["rows"], {"data": data, "index": index})
    np.testing.assert_array_equal(rows, np.take(data, index, axis))


def test_numbers_are_written_as_protobuf_does():
    """150 is the example of its documentation."""
    assert [varint(n) for n in (1, 127, 128, 150)] == [b"\x01", b"\x7f", b"\x80\x01", b"\x96\x01"]
