"""What float16, bfloat16, int8 and fp8 cost in each graph on real edits, and which layers should stay wider.

The formats are emulated (`export.emulate`), so the report needs no device that computes in them. Errors are relative
errors of a graph's first output against float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.fidelity import relative_error
from ..engine.backends.eager import geometry
from ..engine.backends.graphs import Feeds, Runner
from ..engine.graphs import EACH_STEP, GRAPHS
from ..engine.text import whole_texts
from ..model import Checkpoint
from ..model.graphs import graph_module
from ..model.scheduler import scheduler_config
from .calibration import Recorder, record
from .emulate import FORMATS, HALVES, Layer, Layered, Observed, emulated

PHOTOGRAPHS = Path(__file__).parents[1] / "demo"  # where no images are given: chelsea.jpg, a cat
EDITS = (2, 256)  # edits, and pixels of the longer side at most
SMALL = (1, 64)  # for the search, which runs a graph many times
BOUND = 0.03  # relative error of a graph that its format may cause, as for int8 (`export.sensitivity`)
LARGEST = 65504.0  # of float16
MARGIN = 4.0  # other images may reach higher: a layer stays wider whose peak comes this near to LARGEST
Samples = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Part:
    """Layers that were in the format while all others were in float32."""

    layers: int
    first: str
    error: float | None  # None where it was not finite


@dataclass(frozen=True)
class Cost:
    """What a format costs in a graph.

    Attributes:
        error: with every layer in the format; None where it is not finite.
        wider: layers that should stay in float32; remaining: the error that is left then.
        parts: what the search measured, in its order.
    """

    error: float | None
    wider: list[str]
    remaining: float | None
    parts: list[Part]


@dataclass(frozen=True)
class GraphReport:
    layers: list[Layer]
    formats: dict[str, Cost]


@dataclass(frozen=True)
class PrecisionReport:
    """Content of `precision.json`."""

    pictures: str
    edits: int
    size: int
    bound: float = BOUND
    largest: float = LARGEST
    margin: float = MARGIN
    graphs: dict[str, GraphReport] = field(default_factory=dict)


class TorchRecorder(Recorder[Tensor]):
    """Of a checkpoint, with the modules that are traced."""

    precision = "float32"

    def __init__(self, checkpoint: Checkpoint, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.geometry, self.defaults = geometry(checkpoint), checkpoint.defaults
        self.scheduler = scheduler_config(checkpoint.scheduler)
        self.tokenizer = whole_texts(checkpoint.tokenizer.backend_tokenizer)
        self.modules = modules

    def to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    def to_numpy(self, value: Tensor) -> np.ndarray:
        return value.numpy()

    def runner(self, graph: str) -> Runner:
        @torch.inference_mode()
        def run(feeds: Feeds) -> Feeds:
            return dict(zip(GRAPHS[graph].outputs, self.modules[graph](**feeds), strict=False))  # plain: no rewards

        return run


def precision_report(checkpoint: Checkpoint, pictures: Path) -> PrecisionReport:
    """Measure every graph that may be half on edits of images (`calibration.pairs`).

    The checkpoint stays as it is, in float32. Beside it one layer's rounded weights are in memory at a time.

    Raises:
        MRCError: no images.
    """
    modules = {name: graph_module(row.module, getattr(checkpoint, row.part)).eval() for name, row in GRAPHS.items()}
    recorded = []
    for edits in (EDITS, SMALL):
        backend = TorchRecorder(checkpoint, modules)
        record(backend, pictures, *edits)
        recorded.append(backend)
    names = [name for name, row in GRAPHS.items() if row.half]
    graphs = {}
    for name in tqdm(names, desc="precision", unit="graph", disable=None):
        graphs[name] = graph_report(name, modules[name], *(samples(backend, name) for backend in recorded))
    resolution = min(EDITS[1], geometry(checkpoint).resolution)
    return PrecisionReport("chelsea.jpg" if pictures == PHOTOGRAPHS else pictures.name, EDITS[0], resolution,
                           graphs=graphs)  # fmt: skip


def samples(backend: TorchRecorder, graph: str) -> Samples:
    """What was recorded of a graph's inputs; only the shallow step graph reads deep features."""
    recorded = backend.samples if graph in EACH_STEP else backend.once[graph]
    names = GRAPHS[graph].inputs
    return [{key: torch.from_numpy(array) for key, array in feeds.items() if key in names} for feeds in recorded]


def graph_report(graph: str, module: nn.Module, full: Samples, small: Samples) -> GraphReport:
    """Measure one graph; `small` are inputs of a small image, for the search."""
    layers: dict[str, Layer] = {}
    expected = [output(module, feeds, Observed(module, layers)) for feeds in full]
    searched = small[1:2] or small  # of a step graph the middle step
    near = [output(module, feeds, Observed(module, layers)) for feeds in searched]
    formats = {}
    for number in tqdm(FORMATS, desc=graph, unit="format", leave=False, disable=None):
        error = errors_of(module, number, layers, searched, near)
        exact = errors_of(module, number, layers, full, expected)
        formats[number] = cost(number, list(layers.values()), error, exact)
    return GraphReport(list(layers.values()), formats)


def output(module: nn.Module, feeds: dict[str, Tensor], mode: Layered) -> np.ndarray:
    with torch.inference_mode(), mode:
        return module(**feeds)[0].numpy()


Error = Callable[[list[str]], float]  # of the graph with these layers in the format and all others in float32


def errors_of(
    module: nn.Module, number: str, layers: dict[str, Layer], feeds: Samples, expected: list[np.ndarray]
) -> Error:
    """The greatest error over some inputs, infinite where it is not a number."""

    def error(chosen: list[str]) -> float:
        found = [
            relative_error(output(module, x, emulated(module, number, chosen, layers)), y)
            for x, y in zip(feeds, expected, strict=True)
        ]
        return max(value if math.isfinite(value) else math.inf for value in found)

    return error


def cost(number: str, layers: list[Layer], small: Error, full: Error) -> Cost:
    """Search on the small sample, measure on the full one."""
    chosen = [layer.name for layer in layers if number in HALVES or layer.products]
    near = [layer.name for layer in layers if number == "float16" and not layer.peak * MARGIN <= LARGEST]
    whole = full(chosen)
    parts: list[Part] = []
    wider, remaining = near, whole
    if near or not whole <= BOUND:
        more, remaining = search([name for name in chosen if name not in near], small, full, parts)
        wider = near + more
    order = [layer.name for layer in layers]
    return Cost(finite(whole), sorted(wider, key=order.index), finite(remaining), parts)


def finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def search(layers: list[str], small: Error, full: Error, parts: list[Part]) -> tuple[list[str], float]:
    """Layers to keep wider so that the rest errs by at most BOUND, and what it then errs by.

    Halves the part with the greatest error until it is one layer, which is then kept wider. Errors of parts are
    independent, so their squares add: once the sum is within the limit, the rest is measured as a whole. Where that
    shows more on the full sample than on the small one, the limit is lowered by the ratio.
    """
    wider: list[str] = []
    limit = BOUND
    queue: list[tuple[float, list[str]]] = [(0.0, layers)]  # parts with their errors; the first is measured at once
    with tqdm(desc="search", unit="run", leave=False, disable=None) as bar:

        def measured(part: list[str]) -> float:
            error = small(part)
            parts.append(Part(len(part), part[0] if part else "", finite(error)))
            bar.update()
            return error

        while True:
            rest = [name for name in layers if name not in wider]
            if math.hypot(*(error for error, _ in queue)) <= limit and (error := measured(rest)) <= limit:
                remaining = full(rest)
                if remaining <= BOUND:
                    return wider, remaining
                limit = error * BOUND / remaining
            wider += worst(queue, measured)


def worst(queue: list[tuple[float, list[str]]], measured: Error) -> list[str]:
    """The layer found by halving the part with the greatest error; `queue` keeps the others."""
    while True:
        queue.sort(key=lambda item: item[0])
        _, part = queue.pop()
        if len(part) == 1:
            return part
        middle = len(part) // 2
        queue += [(measured(half), half) for half in (part[:middle], part[middle:])]
