"""A stand-in for the engine, fast and without a model: each edit is a function of image, instruction and seed."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.batch import editing

RECORD = {"version": "0", "model": "m", "model_digest": "0" * 64}
SETTINGS = {"steps": 1, "scheduler": "euler", "guidance": 7.5, "image_guidance": 1.5}


class Painter:
    """Notes each call, a line with the seeds, in a file that outlives a kill."""

    def __init__(self, calls: Path, seconds: float = 0.0) -> None:
        self.calls, self.seconds = calls, seconds

    def edit(self, images, instructions, *, seed, **_):
        with self.calls.open("a") as file:
            file.write(" ".join(map(str, seed)) + "\n")
        time.sleep(self.seconds)
        if "fail" in instructions:
            raise MRCError("it failed")
        return SimpleNamespace(images=[paint(*one) for one in zip(images, instructions, seed, strict=True)], timings={})


def paint(image, instruction, seed):
    noise = np.random.RandomState(seed).randint(0, 64, (16, 16, 3))
    base = np.asarray(image.resize((16, 16))).astype(int) // 2 + len(instruction)
    return Image.fromarray((noise + base).clip(0, 255).astype(np.uint8))


def replace_engine(patch, calls: Path, seconds: float = 0.0, model: str = "0") -> None:
    """Let batches be edited by a painter; `patch` sets an attribute."""
    record = RECORD | {"settings": SETTINGS, "model_digest": model * 64}
    patch(editing, "open_engine", lambda args: Painter(calls, seconds))
    patch(editing, "describe_edits", lambda *_: dict(record))
