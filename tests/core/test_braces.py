import pytest

from mrc_edit.core.braces import expand
from mrc_edit.core.errors import MRCError


def test_braces():
    assert expand("a") == ["a"]
    assert expand("x-{08..10}.tar") == ["x-08.tar", "x-09.tar", "x-10.tar"]
    assert expand("{0..1}/{1..2}") == ["0/1", "0/2", "1/1", "1/2"]
    for wrong in ("{2..1}", "{0..999999}", "{a..b}", "{0..1", "{1,2}"):
        with pytest.raises(MRCError):
            expand(wrong)
