"""A model's reply, and the judgement read from it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..core.errors import MRCError

LONGEST = 20_000  # characters; a longer reply is no judgement
NO_FAILURE = {"", "none", "null", "n/a", "no failure"}
# 4, 4.0, "4/5", "4 out of 5", "3-4"
SCORE = re.compile(r"([0-5])(?:\.0+)?(?:\s*(?:-|–|to)\s*([0-5])(?:\.0+)?)?(?:\s*(?:/|out of)\s*5(?:\.0+)?)?")
# "**Score:** 4", where a model writes lines instead of JSON
LINE = re.compile(r"^[\s*_#-]*(failure|verdict|score)[\s*_]*[:=][\s*_]*(.*?)[\s*_]*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Reply:
    text: str
    tokens: int | None  # of question and reply; None where the server does not report them


@dataclass(frozen=True)
class Answer:
    """The judgement of one perspective."""

    score: int  # 0–5
    verdict: bool
    text: str  # the failure, on one line without semicolons, or "None"


def read_answer(text: str) -> Answer:
    """The judgement in a reply: the last JSON object with its three keys, else the last line of each key.

    Raises:
        MRCError: there is none, or a value is out of range or of another type.
    """
    if len(text) > LONGEST:
        raise MRCError(f"the reply has {len(text)} characters, more than {LONGEST}")
    judgements = [fields for fields in objects(text) if {"failure", "verdict", "score"} <= fields.keys()]
    fields = judgements[-1] if judgements else {name.lower(): value for name, value in LINE.findall(text)}
    missing = [name for name in ("failure", "verdict", "score") if name not in fields]
    if missing:
        raise MRCError(f"the reply has no {', '.join(missing)}" if text.strip() else "the reply is empty")
    return Answer(read_score(fields["score"]), read_verdict(fields["verdict"]), read_failure(fields["failure"]))


def objects(text: str) -> Iterator[dict[str, object]]:
    """All JSON objects in the text, nested ones too, keys in lower case."""
    decoder = json.JSONDecoder(parse_constant=str)  # NaN and Infinity become texts, not numbers
    for brace in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        yield {key.lower(): item for key, item in value.items()}


def read_score(value: object) -> int:
    """0–5; of two neighbours ("3-4") the lower one, since the judge was not sure of the higher."""
    match = SCORE.fullmatch(str(value).strip().lower()) if isinstance(value, int | float | str) else None
    if match is None or (match[2] and int(match[2]) != int(match[1]) + 1):
        raise MRCError(f"the score is {value!r}, not a whole number from 0 to 5")
    return int(match[1])


def read_verdict(value: object) -> bool:
    word = str(value).strip(" .!").lower()
    if word not in ("yes", "no", "true", "false"):
        raise MRCError(f"the verdict is {value!r}, not yes or no")
    return word in ("yes", "true")


def read_failure(value: object) -> str:
    """One line without semicolons, which separate the three failures of a reward text."""
    if value is not None and not isinstance(value, str):
        raise MRCError(f"the failure is {value!r}, not a text")
    line = " ".join((value or "").replace(";", ",").split())
    return "None" if line.strip(" .").lower() in NO_FAILURE else line
