import pytest

from mrc_edit.core import memory
from mrc_edit.core.errors import MRCError


def test_memory_figures():
    free = memory.free_memory()
    assert free is None or free > 0
    memory.check_memory(5, "a model", 5)
    with pytest.raises(MRCError, match=r"a model takes 13\.5 GB of the card's memory and 8\.0 GB are free"):
        memory.check_memory(int(13.5e9), "a model", int(8e9), "the card's memory")
