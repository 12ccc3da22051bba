"""What the answers to a rating sheet say: which run was preferred, and how far the judge agrees."""

import json
import math
from pathlib import Path
from typing import Any

from scipy import stats

from ...core.errors import MRCError
from ...core.reward import PERSPECTIVES
from ...core.tables import Table

CHOICES = ("left", "right", "equal")


def read_answers(key_file: Path, files: list[Path]) -> dict:
    """Unblind the answers; by perspective: in how many rows which run was preferred, and what the judge says of them.

    Several raters' preferences (-1 for A, 0, 1 for B) are averaged a row. `p` is of the exact sign test on the rows
    with a preference. `tau` is Kendall's tau-b between preference and the judge's score of B less that of A; None
    where it is not defined, since one of them never changes.

    Raises:
        MRCError: files that cannot be read, or answers to another sheet.
    """
    key = read_json(key_file, "a sheet's key.json")
    given = [read_rater(path, key) for path in files]
    report: dict = {"sheet": key["sheet"], "A": key["A"], "B": key["B"], "raters": len(files)}
    for i, perspective in enumerate(PERSPECTIVES):
        preferences, judged = [], []
        for number, row in enumerate(key["rows"]):
            signs = [
                sign(answers[str(number)][perspective], row["left"])
                for answers in given
                if perspective in answers.get(str(number), {})
            ]
            if signs:
                preferences.append(sum(signs) / len(signs))
                judged.append(judged_difference(row["scores"], i))
        report[perspective] = agreement(preferences, judged) | {"rows": len(key["rows"])}
    return report


def read_rater(path: Path, key: dict) -> dict[str, dict[str, str]]:
    """One rater's answers by row and perspective."""
    value = read_json(path, "the file that the page gave")
    if not isinstance(value, dict) or value.get("sheet") != key["sheet"] or not isinstance(value.get("answers"), dict):
        raise MRCError(f"{path} has no answers to sheet {key['sheet']}; give the answers and the key of the same sheet")
    for number, given in value["answers"].items():
        if number not in map(str, range(len(key["rows"]))) or not isinstance(given, dict):
            raise MRCError(f"{path} answers row {number!r}, which the sheet does not have; download the answers again")
        for perspective, choice in given.items():
            if perspective not in PERSPECTIVES or choice not in CHOICES:
                raise MRCError(f"{path} says {perspective} {choice!r} in row {number}; choose {', '.join(CHOICES)}")
    return value["answers"]


def sign(choice: str, left: str) -> int:
    """-1 where A was preferred, 1 where B was."""
    if choice == "equal":
        return 0
    return 1 if (choice == "left") == (left == "B") else -1


def judged_difference(scores: list, i: int) -> int | None:
    """The judge's score of B less that of A; None where it gave none."""
    first, second = (one[i] if one else None for one in scores)
    return None if first is None or second is None else second - first


def agreement(preferences: list[float], judged: list[int | None]) -> dict:
    first, second = sum(one < 0 for one in preferences), sum(one > 0 for one in preferences)
    both = [(one, score) for one, score in zip(preferences, judged, strict=True) if score is not None]
    tau, tau_p = stats.kendalltau(*zip(*both, strict=True)) if len(both) > 1 else (math.nan, math.nan)
    return {
        "answered": len(preferences),
        "A": first,
        "B": second,
        "equal": len(preferences) - first - second,
        "p": float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0,
        "judged": len(both),
        "tau": None if math.isnan(tau) else round(float(tau), 4),
        "tau_p": None if math.isnan(tau_p) else float(tau_p),
    }


def agreement_table(report: dict) -> Table:
    def cells(row: dict) -> list[str]:
        tau = "not defined" if row["tau"] is None else f"{row['tau']:.2f} (p {row['tau_p']:.2g})"
        return [f"{row['answered']} of {row['rows']}", *(str(row[k]) for k in ("A", "B", "equal")), f"{row['p']:.2g}",
                tau, str(row["judged"])]  # fmt: skip

    head = ["", "answered", f"A, {report['A']}", f"B, {report['B']}", "equal", "p", "agreement with the judge", "n"]
    return Table(
        f"Blind rating, {report['raters']} rater(s)", head, [[p, *cells(report[p])] for p in PERSPECTIVES],
        "p: exact sign test. Agreement: Kendall's tau-b of the preference and the judge's difference in scores, "
        "over the n rows that the judge scored in both runs.",
    )  # fmt: skip


def read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MRCError(f"{path} does not exist; give {what}") from None
    except ValueError as error:
        raise MRCError(f"{path} is damaged ({error}); give {what}") from None
