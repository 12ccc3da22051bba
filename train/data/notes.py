"""What a run says on the terminal of samples that it leaves out or resizes."""

import sys
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from ...core.errors import MRCError

TOLD = 20  # broken samples that are named on the terminal


def say(message: str) -> None:
    """Print a line on stderr, above a progress bar."""
    tqdm.write(message, file=sys.stderr)


def check_broken(broken: set[str], messages: Iterable[str], limit: int | None, show: bool = True) -> None:
    """Add messages to those of the broken samples so far; with `show` new ones are printed.

    Raises:
        MRCError: there are now more than `limit`.
    """
    for message in messages:
        if message not in broken:
            broken.add(message)
            if show:
                say_broken(len(broken), message)
    if limit is not None and len(broken) > limit:
        first = "; ".join(sorted(broken)[:3])
        raise MRCError(f"{len(broken)} broken samples, more than --broken-limit {limit}: {first}; mend the data")


def say_broken(number: int, message: str) -> None:
    """Print why the broken sample of this number, from 1 up, is left out; only the first `TOLD` are named."""
    if number <= TOLD:
        say(f"left out: {message}")
    elif number == TOLD + 1:
        say("more samples are left out; the end counts them")


def add_resized(count: int, pairs: Sequence[str], show: bool = True) -> int:
    """The count of pairs of two sizes, with these; with `show` the first one of all is printed."""
    if pairs and not count and show:
        say(f"{pairs[0]}; edited images of another size are resized to their source's, and counted")
    return count + len(pairs)


def say_counts(broken: int, resized: int, samples: int) -> None:
    """Print how many samples were left out or resized, unless none was.

    Args:
        broken: different samples that could not be read.
        resized: of `samples` drawn, pairs of two sizes.
    """
    if broken:
        say(f"{broken:,} samples could not be read and were left out")
    if resized:
        say(f"{resized:,} of {samples:,} samples were pairs of two sizes; the edited image was resized")
