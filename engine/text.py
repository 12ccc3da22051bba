"""Instructions to token ids, by the `tokenizers` library alone."""

import warnings

import numpy as np
from tokenizers import Encoding, Tokenizer

from ..core.errors import MRCError, reason
from .manifest import Geometry

MAX_CHARACTERS = 10_000  # models read some 300; the tokenizer takes seconds and gigabytes for millions
SHOWN = 200  # characters of what is cut, in the warning


def whole_texts(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither cuts nor pads, whatever was saved with it: `tokenize` does both and says so."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def check_length(text: str, name: str) -> None:
    """Refuse a text that would take long to tokenize."""
    if len(text) > MAX_CHARACTERS:
        raise MRCError(f"{name} has {len(text):,} characters; give at most {MAX_CHARACTERS:,}", argument=name)


def tokenize(tokenizer: Tokenizer, texts: list[str], geometry: Geometry) -> np.ndarray:
    """Token ids `[T, L]` int64; a longer text is cut, with a warning that shows what was lost.

    Raises:
        MRCError: a text that the tokenizer cannot read.
    """
    several = tokens_of_several(tokenizer)
    ids = np.full((len(texts), geometry.text_length), geometry.pad_token_id, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        encoding = encode(tokenizer, text)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        spread = [(each, place) for token, place in pairs for each in several.get(token, [token])]
        tokens = [token for token, _ in spread]
        if len(tokens) > len(row):
            length = len(row) - 1  # the last place is for the end-of-text token
            lost = text[spread[length][1][0] :]
            shown = repr(lost) if len(lost) <= SHOWN else f"{lost[:SHOWN]!r} and {len(lost) - SHOWN} characters more"
            warnings.warn(
                f"the text is {len(tokens)} tokens long and the model reads {len(row)}; cut: {shown}", stacklevel=2
            )
            tokens = [*tokens[:length], geometry.eos_token_id]
        row[: len(tokens)] = tokens
    return ids


def tokens_of_several(tokenizer: Tokenizer) -> dict[int, list[int]]:
    """Added tokens that stand for several, `<cat>` for `<cat>`, `<cat>_1`, … as in diffusers, by number."""
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    several = {}
    for name, number in added.items():
        several[number] = [number]
        while (following := added.get(f"{name}_{len(several[number])}")) is not None:
            several[number].append(following)
    return several


def encode(tokenizer: Tokenizer, text: str) -> Encoding:
    try:
        return tokenizer.encode(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise MRCError(f"the tokenizer cannot read {text[:SHOWN]!r} ({reason(error)}); give another text") from error
