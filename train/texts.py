"""The states of a frozen text encoder for all texts of a data set, computed once: a folder of arrays.

states.npy [U, L, D] float16   one row a text, all positions
pooled.npy [U, D] float16
texts.json                     the U texts in order
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..core.errors import MRCError
from ..core.files import read_value, swapped_folder
from ..model.checkpoint import Checkpoint
from ..model.pipeline import token_ids
from .arrays import write_array
from .stored import check_texts, finite_rows, read_array

ENCODE_BATCH = 32


@torch.no_grad()
def build_text_states(checkpoint: Checkpoint, texts: set[str], folder: Path) -> None:
    """Encode every text, and the empty one that conditioning dropout needs.

    The folder appears whole or not at all; the caller holds its lock.
    """
    rows = sorted(texts | {""})
    encoder = checkpoint.text_encoder
    pooled = []

    def states() -> Iterator[np.ndarray]:
        for start in tqdm(range(0, len(rows), ENCODE_BATCH), desc="cache texts", unit="batch", disable=None):
            ids = token_ids(checkpoint, rows[start : start + ENCODE_BATCH])
            output = encoder(ids.to(encoder.device))
            pooled.append(output.pooler_output.half().cpu().numpy())
            yield output.last_hidden_state.half().cpu().numpy()

    with swapped_folder(folder) as out:
        write_array(out / "states.npy", states())
        write_array(out / "pooled.npy", pooled)
        (out / "texts.json").write_text(json.dumps(rows))


class TextStates:
    """The folder that `build_text_states` wrote, looked up by text.

    Raises:
        MRCError: files that are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.remedy = folder, f"remove {folder}, the next run builds it again"
        self.states_array = read_array(folder / "states.npy", np.float16, (None, None, None), self.remedy)
        count, _, width = self.states_array.shape
        self.pooled_array = read_array(folder / "pooled.npy", np.float16, (count, width), self.remedy)
        path = folder / "texts.json"
        texts = check_texts(read_value(path, self.remedy), count, path, self.remedy)
        self.rows = {text: row for row, text in enumerate(texts)}

    def states(self, texts: list[str]) -> Tensor:
        """`[B, L, D]` float32."""
        return finite_rows(self.states_array, self.numbers(texts), f"{self.folder}/states.npy", self.remedy)

    def pooled(self, texts: list[str]) -> Tensor:
        """`[B, D]` float32."""
        return finite_rows(self.pooled_array, self.numbers(texts), f"{self.folder}/pooled.npy", self.remedy)

    def numbers(self, texts: list[str]) -> list[int]:
        """The texts' rows.

        Raises:
            MRCError: a text that is not in the folder.
        """
        if missing := [text for text in texts if text not in self.rows]:
            raise MRCError(f"{self.folder} has no states of {missing[0][:80]!r}; {self.remedy}")
        return [self.rows[text] for text in texts]
