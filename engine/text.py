"""Instructions to token ids, by the `tokenizers` library alone."""

import warnings

import numpy as np
from tokenizers import Tokenizer

from .manifest import Geometry


def tokenize(tokenizer: Tokenizer, texts: list[str], geometry: Geometry) -> np.ndarray:
    """Token ids `[T, L]` int64; a longer text is cut, with a warning that shows what was lost."""
    ids = np.full((len(texts), geometry.text_length), geometry.pad_token_id, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        encoding = tokenizer.encode(text)
        tokens = encoding.ids
        if len(tokens) > len(row):
            length = len(row) - 1  # the last place is for the end-of-text token
            start = encoding.offsets[length][0]
            warnings.warn(
                f"the text is {len(tokens)} tokens long and the model reads {len(row)}; cut: {text[start:]!r}",
                stacklevel=2,
            )
            tokens = [*tokens[:length], geometry.eos_token_id]
        row[: len(tokens)] = tokens
    return ids
