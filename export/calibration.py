"""Inputs of the U-Net from real edits, to calibrate the quantization on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..engine import Engine
from ..engine.backends.onnxruntime import OnnxRuntimeBackend
from ..errors import MRCError

STEPS = 10  # of Euler's method, an edit
SAMPLES = 3  # of its steps that are kept, spread over the schedule
INSTRUCTIONS = (
    "make it look like winter", "turn it into a watercolour painting", "remove the person on the left",
    "change the background to a beach", "make it night", "add a red balloon", "make the walls of wood",
)  # fmt: skip


class Recorder(OnnxRuntimeBackend):
    """Keeps the feeds of chosen steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.wanted: set[int] = set()
        self.samples: list[dict[str, np.ndarray]] = []

    def hold(self, array: np.ndarray) -> Any:
        return array

    def unet(self, *, step: int, **rest: Any) -> tuple[np.ndarray, Any]:
        self.recording = step in self.wanted
        return super().unet(step=step, **rest)

    def run(self, role: str, **feeds: Any) -> list[Any]:
        outputs = super().run(role, **feeds)
        if role == "unet" and self.recording:
            kept = {name: np.array(value) for name, value in feeds.items()}
            self.samples.append(kept | {"deep": outputs[1].numpy().copy()})
        return outputs


def pairs(folder: Path, count: int) -> list[tuple[Path, str]]:
    """Pictures of a folder with their instructions, spread evenly over both.

    Instructions come from a JSON file `{"picture.jpg": ["instruction", …]}` in the folder, as Real-Edit has
    it, or where there is none from a list of common ones.
    """
    endings = Image.registered_extensions()
    images = sorted(path for path in folder.glob("*") if path.suffix.lower() in endings)
    if not images:
        raise MRCError(f"{folder} holds no pictures to calibrate on; give a folder of photographs like those to edit")
    texts: dict[str, list[str]] = {}
    for path in folder.glob("*.json"):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            texts |= {name: [found[name]] if isinstance(found[name], str) else found[name] for name in found}
    chosen = []
    for i in range(count):
        image = images[i * len(images) // count % len(images)]
        of = texts.get(image.name) or list(INSTRUCTIONS)
        text = of[i % len(of)]
        if not isinstance(text, str):
            raise MRCError(f"the instruction for {image.name} is {text!r}; give a text")
        chosen.append((image, text.split(": ", 1)[-1]))  # Real-Edit's "1. Local: …"
    return chosen


def record(export: Path, images: Path, edits: int, size: int) -> list[dict[str, np.ndarray]]:
    """Inputs of the step graph, and its deep features, at steps spread over several edits.

    Args:
        size: pixels of the longer side, at most the model's own.
    """
    backend = Recorder(export)
    engine = Engine(backend)
    resolution = min(size, backend.geometry.resolution)
    with tqdm(pairs(images, edits), desc=f"edits at {resolution}", unit="edit", disable=None) as chosen:
        for i, (image, text) in enumerate(chosen):
            backend.wanted = {(k * STEPS + i) // SAMPLES % STEPS for k in range(SAMPLES)}
            engine.edit(
                image, text, num_inference_steps=STEPS, scheduler="euler", seed=i, resolution=resolution,
                output_type="latent",
            )  # fmt: skip
    return backend.samples
