import os
import platform
from pathlib import Path

import pytest

from mrc_edit.core import memory
from mrc_edit.core.errors import MRCError


def test_memory_figures():
    free = memory.free_memory()
    assert free is None or free > 0
    memory.check_memory(5, "a model", 5)
    with pytest.raises(MRCError, match=r"a model takes 13\.5 GB of the card's memory and 8\.0 GB are free"):
        memory.check_memory(int(13.5e9), "a model", int(8e9), "the card's memory")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps freed memory")
def test_freed_memory_goes_back_to_the_system():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pieces = [bytes(3000) for _ in range(60_000)]
    kept = pieces[::500]  # so that the freed pieces do not lie at the end of the heap
    del pieces
    held = resident()
    memory.return_freed_memory()
    assert len(kept) == 120 and resident() < held - 100e6
