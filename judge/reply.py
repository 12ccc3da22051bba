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
# "**Score:** 4", where a model writes lines instead of JSON; possessive, so that no reply takes quadratic time
LINE = re.compile(r"^[ \t*_#-]*+(failure|verdict|score)[ \t*_]*+[:=][\s*_]*+(.*)", re.IGNORECASE | re.MULTILINE)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MOST_TOKENS = 10**9  # of one reply
SHOWN = 50  # characters of a wrong value in a message


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


def read_completion(body: bytes) -> Reply:
    """The reply in a response of OpenAI's chat completions.

    Raises:
        MRCError: the response is something else.
    """
    try:
        completion = json.loads(body)
        text = completion["choices"][0]["message"].get("content") or ""
        tokens = (completion.get("usage") or {}).get("total_tokens")
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise MRCError(f"the response is no chat completion ({type(error).__name__}: {error})") from None
    return checked_reply(text, tokens)


def checked_reply(text: object, tokens: object) -> Reply:
    """A reply of values from outside, without halves of surrogate pairs, which no file can hold.

    Raises:
        MRCError: no text, or no number of tokens.
    """
    if not isinstance(text, str):
        raise MRCError(f"the reply is {shown(text)}, not a text")
    if tokens is not None and not (type(tokens) is int and 0 <= tokens <= MOST_TOKENS):
        raise MRCError(f"the reply's tokens are {shown(tokens)}, not a number")
    return Reply(whole_pairs(text), tokens)


def whole_pairs(text: str) -> str:
    """The text with "\ufffd" for every half of a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def one_line(text: str) -> str:
    """The text on one line, without control characters, which a terminal would obey."""
    return CONTROL.sub("\ufffd", whole_pairs(" ".join(text.split())))


def shown(value: object) -> str:
    """A value of any size and depth for a message."""
    if isinstance(value, str):
        return repr(value[:SHOWN])
    return str(value)[:SHOWN] if isinstance(value, int | float) else f"a {type(value).__name__}"


def read_answer(text: str) -> Answer:
    """The judgement in a reply: the last JSON object with its three keys, else the last line of each key.

    Raises:
        MRCError: there is none, or a value is out of range or of another type.
    """
    if len(text) > LONGEST:
        raise MRCError(f"the reply has {len(text)} characters, more than {LONGEST}")
    judgements = [fields for fields in objects(text) if {"failure", "verdict", "score"} <= fields.keys()]
    fields = (
        judgements[-1] if judgements else {name.lower(): value.strip(" \t\r*_") for name, value in LINE.findall(text)}
    )
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
        raise MRCError(f"the score is {shown(value)}, not a whole number from 0 to 5")
    return int(match[1])


def read_verdict(value: object) -> bool:
    word = str(value).strip(" .!").lower()
    if word not in ("yes", "no", "true", "false"):
        raise MRCError(f"the verdict is {shown(value)}, not yes or no")
    return word in ("yes", "true")


def read_failure(value: object) -> str:
    """One line without semicolons, which separate the three failures of a reward text."""
    if value is not None and not isinstance(value, str):
        raise MRCError(f"the failure is {shown(value)}, not a text")
    line = one_line((value or "").replace(";", ","))
    return "None" if line.strip(" .").lower() in NO_FAILURE else line
