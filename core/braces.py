"""Names of many files in one, as the shell and `webdataset` write them."""

import itertools
import re

from .errors import MRCError

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MOST = 100_000  # files


def expand(pattern: str) -> list[str]:
    """`a-{00..02}.tar` → a-00.tar, a-01.tar, a-02.tar; a name without braces is itself.

    Raises:
        MRCError: other braces, a range that falls, or more than `MOST` names.
    """
    texts = RANGE.split(pattern)[::3]
    if any(brace in text for text in texts for brace in "{}"):
        raise MRCError(f"{pattern!r} has braces that are no range of numbers; give such as train-{{00000..00051}}.tar")
    ranges, total = [], 1
    for first, last in RANGE.findall(pattern):
        numbers = range(int(first), int(last) + 1)
        total *= len(numbers)
        if not 0 < total <= MOST:
            raise MRCError(f"{pattern!r} names {total:,} files; give 1 to {MOST:,}")
        ranges.append([f"{number:0{len(first)}d}" for number in numbers])
    return [
        texts[0] + "".join(number + text for number, text in zip(chosen, texts[1:], strict=True))
        for chosen in itertools.product(*ranges)
    ]
