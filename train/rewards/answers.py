"""The answers to a rating sheet: which run was preferred, and how far the judge agrees."""

import math
from pathlib import Path

from scipy import stats

from ...core.errors import MRCError
from ...core.files import read_json
from ...core.reward import PERSPECTIVES
from ...core.tables import Table
from .runs import is_score

CHOICES = ("left", "right", "equal")
KEY_REMEDY = "give the key.json of a sheet"


def read_answers(key_file: Path, files: list[Path]) -> dict:
    """Unblind the answers: for every perspective how many rows preferred which run, and the judge's agreement.

    The preferences of several raters (-1 for A, 0, 1 for B) are averaged in each row. `p` is from the exact sign test
    on the rows with a preference. `tau` is Kendall's tau-b between the preference and the judge's score of B minus
    that of A; None where one of them is constant.

    Raises:
        MRCError: files that cannot be read, or answers to another sheet.
    """
    key = read_json(key_file, KEY_REMEDY)
    check_key(key, key_file)
    raters = [read_rater(path, key) for path in files]
    report: dict = {"sheet": key["sheet"], "A": key["A"], "B": key["B"], "raters": len(files)}
    for i, perspective in enumerate(PERSPECTIVES):
        preferences, judged = [], []
        for number, row in enumerate(key["rows"]):
            signs = [
                sign(answers[str(number)][perspective], row["left"])
                for answers in raters
                if perspective in answers.get(str(number), {})
            ]
            if signs:
                preferences.append(sum(signs) / len(signs))
                judged.append(judged_difference(row["scores"], i))
        report[perspective] = agreement(preferences, judged) | {"rows": len(key["rows"])}
    return report


def check_key(key: dict, path: Path) -> None:
    """Refuse a key.json of another form."""
    rows = key.get("rows")
    texts = all(isinstance(key.get(name), str) for name in ("sheet", "A", "B"))
    if not texts or not isinstance(rows, list) or not rows or not all(is_row(row) for row in rows):
        raise MRCError(f"{path} is no key of a sheet, or damaged; {KEY_REMEDY}")


def is_row(row: object) -> bool:
    """Whether it has a side, and for both runs scores, some of which may be missing."""
    if not isinstance(row, dict) or row.get("left") not in ("A", "B") or not isinstance(row.get("scores"), list):
        return False
    given = [scores for scores in row["scores"] if scores is not None]
    return len(row["scores"]) == 2 and all(
        isinstance(scores, list) and len(scores) == len(PERSPECTIVES) and all(map(is_score, scores)) for scores in given
    )


def read_rater(path: Path, key: dict) -> dict[str, dict[str, str]]:
    """One rater's answers by row and perspective."""
    value = read_json(path, "give the file that the page downloaded")
    if value.get("sheet") != key["sheet"] or not isinstance(value.get("answers"), dict):
        raise MRCError(f"{path} has no answers to sheet {key['sheet']}; give the answers and the key of the same sheet")
    for number, choices in value["answers"].items():
        if number not in map(str, range(len(key["rows"]))) or not isinstance(choices, dict):
            raise MRCError(f"{path} answers row {number!r}, which the sheet does not have; download the answers again")
        for perspective, choice in choices.items():
            if perspective not in PERSPECTIVES or choice not in CHOICES:
                raise MRCError(f"{path} says {perspective} {choice!r} in row {number}; choose {', '.join(CHOICES)}")
    return value["answers"]


def sign(choice: str, left: str) -> int:
    """-1 where A was preferred, 1 where B was."""
    if choice == "equal":
        return 0
    return 1 if (choice == "left") == (left == "B") else -1


def judged_difference(scores: list, i: int) -> int | None:
    """The judge's score of B minus that of A; None where it gave none."""
    first, second = (one[i] if one else None for one in scores)
    return None if first is None or second is None else second - first


def agreement(preferences: list[float], judged: list[int | None]) -> dict:
    """The numbers of one perspective; both lists have one entry a row."""
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
    """The table of what `read_answers` returns."""

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
