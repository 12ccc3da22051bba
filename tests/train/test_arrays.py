from pathlib import Path

import numpy as np
import pytest

from mrc_edit.train.arrays import write_array


def test_parts_are_read_back_as_one_array(tmp_path):
    whole = np.random.RandomState(0).rand(5, 2, 3).astype(np.float16)
    write_array(tmp_path / "a.npy", (part for part in (whole[:2], whole[2:3], whole[3:])))
    for mode in (None, "r"):
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode=mode), whole)


def test_the_header_stays_as_long_when_the_rows_become_many(tmp_path):
    whole = np.arange(4001, dtype=np.float32)[:, None]
    write_array(tmp_path / "a.npy", np.split(whole, [1, 10, 99, 1000]))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), whole)


def test_a_full_disk_is_an_error():
    """Through a memory map it would end the process."""
    with pytest.raises(OSError, match="No space left"):
        write_array(Path("/dev/full"), [np.zeros((1, 1 << 20))])
