"""Textual inversion: tokens of one or several vectors, added to tokenizer and text encoder.

A token of n vectors becomes n tokens, `<cat>`, `<cat>_1`, … `<cat>_{n-1}`, as in diffusers; who writes the first means
all of them (`engine.text`).
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.adapters import AddedToken
from ..core.errors import MRCError
from .adapter_files import AdapterFile, read_adapter_file
from .checkpoint import Checkpoint

OLD_EOS = 2  # in configurations from before transformers 4.31, which pool at the greatest token instead


def add_embeddings(checkpoint: Checkpoint, files: Mapping[str, str | Path]) -> list[AddedToken]:
    """Add tokens to tokenizer and text encoder, in place.

    Args:
        files: by token, as it will stand in instructions; a file's own name for it does not count.

    Returns:
        What was added, in order.

    Raises:
        MRCError: a file that is no textual inversion of finite numbers, one for another model, or a token that cannot
            be, or that the tokenizer has.
    """
    if not isinstance(files, Mapping):
        raise MRCError(f"embeddings are {files!r:.80}; give files by token, such as {{'<cat>': 'cat.safetensors'}}")
    added = []
    for token, path in files.items():
        file = read_adapter_file(Path(path))
        add_token(checkpoint, token, vectors_of(file, checkpoint.text_encoder.config.hidden_size))
        added.append(AddedToken(token, file.path.name, file.sha256))
    return added


def vectors_of(file: AdapterFile, width: int) -> Tensor:
    """The vectors `[n, D]` of a file of A1111, or of diffusers: one tensor under the name of its token."""
    if len(file.tensors) != 1:
        names = ", ".join(sorted(file.tensors))
        raise MRCError(
            f"{file.path} holds {len(file.tensors)} tensors ({names:.80}), a textual inversion for this family one; "
            "give such a file (two are of SDXL)"
        )
    ((name, vectors),) = file.tensors.items()
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
        raise MRCError(
            f"{file.path} is for another model: {name:.80} is {list(vectors.shape)}, and this text encoder takes "
            f"vectors of {width} numbers; give a textual inversion for this model"
        )
    return vectors


def add_token(checkpoint: Checkpoint, token: str, vectors: Tensor) -> None:
    """Add a token of n vectors `[n, D]`."""
    tokenizer, encoder = checkpoint.tokenizer, checkpoint.text_encoder
    if not (isinstance(token, str) and token.isprintable() and re.fullmatch(r"\S+", token)):
        raise MRCError(f"the token is {token!r:.80}; give a word without spaces, such as '<cat>'")
    names = [token, *(f"{token}_{i}" for i in range(1, len(vectors)))]
    # the next number, and the token of which this would be a number, would be read as one with it
    ambiguous = {f"{token}_{len(vectors)}", re.sub(r"_\d+$", "", token)} & tokenizer.get_added_vocab().keys()
    if taken := [name for name in (*names, *ambiguous) if name in tokenizer.get_vocab()]:
        raise MRCError(f"the tokenizer has {taken[0]!r} already, so {token!r} cannot be added; give another token")
    tokenizer.add_tokens(names)
    ids = tokenizer.convert_tokens_to_ids(names)
    encoder.resize_token_embeddings(max(encoder.config.vocab_size, len(tokenizer)), mean_resizing=False)
    with torch.no_grad():
        encoder.get_input_embeddings().weight[ids] = vectors
    encoder.requires_grad_(False)
    if encoder.eos_token_id == OLD_EOS:  # the greatest token is no longer the last one
        encoder.eos_token_id = encoder.config.eos_token_id = tokenizer.eos_token_id
