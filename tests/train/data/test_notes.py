import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.train.data.notes import TOLD, add_resized, check_broken, say_counts


def test_the_first_broken_samples_are_named_once(capsys):
    seen: set[str] = set()
    messages = [f"sample {i} is broken" for i in range(TOLD + 5)]
    check_broken(seen, messages[:3], None)
    check_broken(seen, messages, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"left out: {m}" for m in messages[:TOLD]] + ["more samples are left out; the end counts them"]
    assert seen == set(messages)
    check_broken(seen, ["sample x"], None, show=False)
    assert capsys.readouterr().err == "" and "sample x" in seen
    with pytest.raises(MRCError, match=f"--broken-limit {TOLD}"):
        check_broken(seen, [], TOLD)


def test_the_first_pair_of_two_sizes_is_named(capsys):
    count = add_resized(0, [])
    assert capsys.readouterr().err == ""
    count = add_resized(count, ["sample 1: source is 2×2, edited 3×3", "sample 2"])
    assert add_resized(count, ["sample 3"]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "sample 1: source is 2×2, edited 3×3; edited images of another size are resized to their source's, and counted"
    ]


def test_the_end_counts(capsys):
    say_counts(0, 0, 5)
    assert capsys.readouterr().err == ""
    say_counts(2, 1000, 4000)
    assert capsys.readouterr().err.splitlines() == [
        "2 samples could not be read and were left out",
        "1,000 of 4,000 samples were pairs of two sizes; the edited image was resized",
    ]
