"""Inputs of the graphs from real edits: what int8 is calibrated on, and what the precision report measures."""

from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from onnxruntime import OrtValue
from PIL import Image
from tqdm import tqdm

from ..core.errors import MRCError
from ..core.files import read_json
from ..engine import Engine
from ..engine.backends.base import Conditions
from ..engine.backends.graphs import GraphBackend, GraphUNet
from ..engine.backends.onnxruntime import OnnxRuntimeBackend
from ..engine.backends.providers import CPU
from ..engine.graphs import dtype
from ..engine.request import EditOptions

Value = TypeVar("Value")
REMEDY = "mend or remove it"
STEPS = 6  # of Euler's method, an edit
GUIDED: EditOptions = {"guidance_scale": 7.5, "image_guidance_scale": 1.5, "scheduler": "euler"}
SAMPLES = 3  # steps an edit that are recorded, spread over the schedule
INSTRUCTIONS = (
    "make it look like winter", "turn it into a watercolour painting", "remove the person on the left",
    "change the background to a beach", "make it night", "add a red balloon", "make the walls of wood",
)  # fmt: skip


class Recorder(GraphBackend[Value]):
    """Keeps the inputs of every graph that runs once an edit, and those of the step graph at chosen steps."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.device_loop = None  # so that every step passes through `RecordingUNet`
        self.steps: set[int] = set()
        self.samples: list[dict[str, np.ndarray]] = []  # of the step graph, and its deep features
        self.once: dict[str, list[dict[str, np.ndarray]]] = {}  # by graph

    def run(self, graph: str, **arrays: np.ndarray) -> Conditions:
        self.once.setdefault(graph, []).append(arrays)
        return super().run(graph, **arrays)

    def guided_unet(
        self, conditions: Conditions, *, branch: np.ndarray, text: np.ndarray, reward: np.ndarray, image: np.ndarray
    ) -> "RecordingUNet[Value]":
        return RecordingUNet(self, conditions, branch, text, reward, image)


class RecordingUNet(GraphUNet[Value]):
    backend: Recorder[Value]

    def full(self, step: int, sample: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        noise = super().full(step, sample, guidance)
        if step in self.backend.steps:
            to_device = self.backend.to_device
            feeds = self.feeds(step, to_device(sample), to_device(guidance)) | self.deep
            # ONNX Runtime's int64 is numpy's longlong, which OpenVINO does not take
            self.backend.samples.append(
                {name: self.backend.to_numpy(value).astype(dtype(name)) for name, value in feeds.items()}
            )
        return noise


class OnnxRecorder(Recorder[OrtValue], OnnxRuntimeBackend):
    """Of an export."""


def check_int8(pictures: Path) -> None:
    """Check what int8 needs before the slow part.

    Raises:
        MRCError: a missing package, or no images.
    """
    missing = [name for name in ("nncf", "openvino") if find_spec(name) is None]
    if missing:
        raise MRCError(f"int8 needs {', '.join(missing)}; pip install 'mrc-edit[int8]'")
    pairs(pictures, 1)


def pairs(folder: Path, count: int) -> list[tuple[Path, str]]:
    """Images with instructions, spread evenly over a folder.

    The folder holds images, with a JSON file of instructions `{"picture.jpg": ["instruction", …]}` as Real-Edit
    has it, or without one: then common instructions are used. Or it is InstructPix2Pix data, folders with
    `prompt.json`.

    Raises:
        MRCError: no images, or an instruction that is no text.
    """
    listed = instruct_pix2pix(folder) or plain_pictures(folder)
    if not listed:
        raise MRCError(f"{folder} holds no images to calibrate on; give a folder of images like those to edit")
    chosen = []
    for i in range(count):
        image, instructions = listed[i * len(listed) // count % len(listed)]
        text = instructions[i % len(instructions)] if isinstance(instructions, list) else instructions
        if not isinstance(text, str):
            raise MRCError(f"the instruction for {image} is {text!r}; give a text")
        chosen.append((image, text.split(": ", 1)[-1]))  # Real-Edit's "1. Local: …"
    return chosen


def instruct_pix2pix(folder: Path) -> list[tuple[Path, list]]:
    """Source images of InstructPix2Pix data with their instructions."""
    edits = {path: read_json(path, REMEDY).get("edit") for path in folder.glob("*/prompt.json")}
    return [
        (image, edit[:1] if isinstance(edit, list) and edit else [edit])  # training takes a list's first, too
        for path, edit in sorted(edits.items())
        for image in sorted(path.parent.glob("*_0.*"))[:1]
    ]


def plain_pictures(folder: Path) -> list[tuple[Path, list]]:
    """Images with the instructions that JSON files beside them hold."""
    texts: dict[str, list] = {}
    for path in folder.glob("*.json"):
        texts |= read_json(path, REMEDY)
    endings = Image.registered_extensions()
    images = sorted(path for path in folder.glob("*") if path.suffix.lower() in endings)
    return [(image, texts.get(image.name) or list(INSTRUCTIONS)) for image in images]


def record(backend: Recorder, images: Path, edits: int, size: int) -> None:
    """Run several edits on `backend`, which keeps inputs at steps spread over them.

    Args:
        size: pixels of the longer side, at most the model's own.
    """
    engine = Engine(backend)
    resolution = min(size, backend.geometry.resolution)
    student = backend.geometry.embeds_guidance  # edits in its own way alone
    steps = backend.defaults.num_inference_steps if student else STEPS
    settings: EditOptions = {} if student else GUIDED
    with tqdm(pairs(images, edits), desc=f"edits at {resolution}", unit="edit", disable=None) as chosen:
        for i, (image, text) in enumerate(chosen):
            backend.steps = {(k * steps + i) // SAMPLES % steps for k in range(SAMPLES)}
            own: EditOptions = {"num_inference_steps": steps, "seed": i, "resolution": resolution}
            result = engine.edit(image, text, **settings | own | EditOptions(output_type="latent"))
            backend.once.setdefault("vae_decoder", []).append({"latents": np.stack(result.images)})


def step_samples(export: Path, images: Path, *runs: tuple[int, int]) -> list[list[dict[str, np.ndarray]]]:
    """Inputs of an export's step graph, and its deep features, of each run: its edits and size, as of `record`."""
    backend = OnnxRecorder(export, provider=CPU, cached=False)
    recorded = []
    for edits, size in runs:
        backend.samples = []
        record(backend, images, edits, size)
        recorded.append(backend.samples)
    return recorded
