"""Instructions to token ids, by the `tokenizers` library alone."""

from collections import Counter

import numpy as np
from tokenizers import Encoding, Tokenizer

from ..core.errors import MRCError, reason
from .manifest import Geometry
from .notes import note

MAX_CHARACTERS = 10_000  # models read some 300; the tokenizer takes seconds and gigabytes for millions
SHOWN = 200  # characters of what is cut, in the warning
# Tokens of a vocabulary of words, such as mini's: more than the bytes alone, and far fewer than CLIP's 49,408, whose
# models read any word in pieces
WORDS = range(515, 5_000)


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

    A warning names the words that are not in a small vocabulary.

    Raises:
        MRCError: a text that the tokenizer cannot read.
    """
    several = tokens_of_several(tokenizer)
    ids = np.full((len(texts), geometry.text_length), geometry.pad_token_id, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        encoding = encode(tokenizer, text)
        if unknown := unknown_words(tokenizer, text, encoding):
            note(f"the model has not learned {', '.join(unknown)}; it knows few words, and may do something else")
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        spread = [(each, place) for token, place in pairs for each in several.get(token, [token])]
        tokens = [token for token, _ in spread]
        if len(tokens) > len(row):
            length = len(row) - 1  # the last place is for the end-of-text token
            lost = text[spread[length][1][0] :]
            shown = repr(lost) if len(lost) <= SHOWN else f"{lost[:SHOWN]!r} and {len(lost) - SHOWN} characters more"
            note(f"the text is {len(tokens)} tokens long and the model reads {len(row)}; cut: {shown}")
            tokens = [*tokens[:length], geometry.eos_token_id]
        row[: len(tokens)] = tokens
    return ids


def unknown_words(tokenizer: Tokenizer, text: str, encoding: Encoding) -> list[str]:
    """The words that a small vocabulary has in pieces alone, in the order of the text."""
    if tokenizer.get_vocab_size() not in WORDS:
        return []
    pieces = Counter(number for number in encoding.word_ids if number is not None)
    places = (encoding.word_to_chars(number) for number, count in pieces.items() if count > 1)
    words = (text[slice(*place)] for place in places if place is not None)
    return list(dict.fromkeys(word for word in words if word[0].isalpha()))


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
