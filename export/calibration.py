"""Inputs of the U-Net from real edits, to calibrate the quantization on."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..core.errors import MRCError
from ..core.files import read_json
from ..engine import Engine
from ..engine.backends.onnxruntime import OnnxRuntimeBackend

REMEDY = "mend or remove it"
STEPS = 6  # of Euler's method, an edit
SAMPLES = 3  # of its steps that are kept, spread over the schedule
INSTRUCTIONS = (
    "make it look like winter", "turn it into a watercolour painting", "remove the person on the left",
    "change the background to a beach", "make it night", "add a red balloon", "make the walls of wood",
)  # fmt: skip


class Recorder(OnnxRuntimeBackend):
    """Keeps the feeds of chosen steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, cached=False)
        self.wanted: set[int] = set()
        self.samples: list[dict[str, np.ndarray]] = []

    def hold(self, array: np.ndarray) -> Any:
        return array

    def unet(self, *, step: int, **rest: Any) -> tuple[np.ndarray, Any]:
        self.recording = step in self.wanted
        return super().unet(step=step, **rest)

    def run(self, role: str, kept: dict | None = None, **feeds: Any) -> list[Any]:
        outputs = super().run(role, kept, **feeds)
        if role == "unet" and self.recording:
            inputs = {name: np.array(value) for name, value in feeds.items()}
            self.samples.append(inputs | {"deep": outputs[1].numpy().copy()})
        return outputs


def pairs(folder: Path, count: int) -> list[tuple[Path, str]]:
    """Pictures with instructions, spread evenly over a folder.

    It holds pictures, with their instructions in a JSON file `{"picture.jpg": ["instruction", …]}` as Real-Edit
    has it, or without, for common ones; or it is InstructPix2Pix data, folders with `prompt.json`.

    Raises:
        MRCError: no pictures, or an instruction that is no text.
    """
    found: list[tuple[Path, list]] = []
    texts: dict[str, Any] = {}
    for path in sorted(folder.glob("*/prompt.json")):
        found += [(image, [read_json(path, REMEDY).get("edit")]) for image in sorted(path.parent.glob("*_0.*"))[:1]]
    if not found:
        for path in folder.glob("*.json"):
            texts |= read_json(path, REMEDY)
        endings = Image.registered_extensions()
        images = sorted(path for path in folder.glob("*") if path.suffix.lower() in endings)
        found = [(image, texts.get(image.name) or list(INSTRUCTIONS)) for image in images]
    if not found:
        raise MRCError(f"{folder} holds no pictures to calibrate on; give a folder of pictures like those to edit")
    chosen = []
    for i in range(count):
        image, of = found[i * len(found) // count % len(found)]
        text = of[i % len(of)] if isinstance(of, list) else of
        if not isinstance(text, str):
            raise MRCError(f"the instruction for {image} is {text!r}; give a text")
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
