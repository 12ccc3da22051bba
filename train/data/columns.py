"""The columns of a table that hold source image, edited image and instruction."""

import warnings
from collections.abc import Set
from dataclasses import fields, replace

from ...core.columns import KNOWN, Columns
from ...core.errors import MRCError

REWARDS = {"reward_scores", "reward_text"}  # three numbers, and three texts joined by "; "
ROLES = [field.name for field in fields(Columns)]


def parse_columns(text: str | None) -> dict[str, str]:
    """The names in `source=…,edited=…,instruction=…`, by role; each role may be left out.

    Raises:
        MRCError: another form, or a role or a name twice.
    """
    given: dict[str, str] = {}
    for part in text.split(",") if text is not None else []:
        role, _, name = (piece.strip() for piece in part.partition("="))
        if role not in ROLES or not name or role in given or name in given.values():
            raise MRCError(f"--columns has {part!r}; give source=NAME,edited=NAME,instruction=NAME, each at most once")
        given[role] = name
    return given


def choose_columns(names: Set[str], where: object, given: dict[str, str]) -> Columns:
    """The columns of a table: `given` by role, the others those of the known data set that fits.

    Warns of columns that are not used.

    Args:
        names: all columns of the table.
        where: the table, for messages.

    Raises:
        MRCError: no known data set has such columns, or several do.
    """
    fitting = {columns for known in KNOWN.values() if names >= {*(columns := replace(known, **given)).names()}}
    if len(fitting) != 1:
        why = "are of several known data sets" if fitting else "are of no known data set"
        if missing := sorted(set(given.values()) - names):
            why = f"lack {', '.join(missing)}"
        raise MRCError(
            f"the columns of {where} ({', '.join(sorted(names))}) {why}; "
            "say what holds what: --columns source=NAME,edited=NAME,instruction=NAME"
        )
    columns = fitting.pop()
    if unused := sorted(names - {*columns.names()} - REWARDS):
        warnings.warn(f"{where}: not used: {', '.join(unused)}", stacklevel=2)
    return columns
