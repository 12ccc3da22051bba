"""TensorRT on the engines of an export folder, which `mrc-export --trt` builds; no PyTorch."""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...core.errors import MRCError
from ..graphs import EACH_STEP, GRAPHS
from ..manifest import Artifact, read_checked
from . import cuda
from .cuda import Buffer
from .exported import ExportBackend
from .recent import Recent
from .tensorrt_cache import RuntimeCache
from .tensorrt_engine import REMEDY, Binding, Scratch, Shapes, chosen_profile, open_engine
from .tensorrt_library import load_tensorrt
from .tensorrt_loop import device_loop

FLAVOURS = ("tensorrt", "tensorrt_rtx")
WIDE = "vae_decoder in float32"  # opened when an image overflows in float16
BINDINGS = 4  # sets of shapes of a graph that are kept
CHANGING = frozenset({"sample", "guidance", "time_bias", "deep"})  # at every step; other inputs are an edit's


def load(folder: Path, precision: str | None = None) -> "TensorRTBackend":
    return TensorRTBackend(folder, precision)


class TensorRTBackend(ExportBackend[Buffer]):
    """One engine a graph, and a binding for each set of input shapes. All contexts share one activation buffer."""

    def __init__(self, folder: Path, precision: str | None = None) -> None:
        super().__init__(folder, precision)
        built = {artifact.runtime for artifact in self.manifest.artifacts}
        self.flavour = next((name for name in FLAVOURS if name in built), "")
        if not self.flavour:
            raise MRCError(f"{folder} has no TensorRT engines; {REMEDY}")
        self.trt: Any = load_tensorrt(self.flavour)
        self.device = cuda.device()
        self.device_loop = device_loop(self.device)
        self.scratch = Scratch(self.device)
        self.configs: dict[str, Any] = {}
        self.caches: dict[str, RuntimeCache] = {}
        with tqdm(GRAPHS, desc="load engines", leave=False, disable=None) as names:
            self.engines = {graph: self.open(graph) for graph in names}
        self.bindings: dict[str, Recent[Binding]] = defaultdict(lambda: Recent(BINDINGS))

    def artifact(self, graph: str) -> Artifact:
        """The engine of a graph, or of `WIDE`."""
        role, precision = ("vae_decoder", "float32") if graph == WIDE else (graph, None)
        if self.precision == "int8" and graph in EACH_STEP:
            precision = "int8"
        artifact = self.manifest.artifact(role, self.flavour, precision)
        if artifact is None or not artifact.profiles:
            which, flag = ("int8 ", " with --int8") if precision == "int8" else ("", "")
            raise MRCError(f"{self.folder} has no {which}{self.flavour} engine of {graph!r}; {REMEDY}{flag}")
        return artifact

    def open(self, graph: str) -> Any:
        artifact = self.artifact(graph)
        content = read_checked(self.folder, self.manifest, artifact.path)
        built_by = self.manifest.tools.get(self.flavour, "an unknown version")
        engine = open_engine(self.trt, artifact, content, built_by, self.device.capability)
        if self.flavour == "tensorrt_rtx":
            self.configs[graph] = self.config(graph, engine)
            key = f"{self.manifest.files[artifact.path]} {self.trt.__version__} {self.device.name}"
            self.caches[graph] = RuntimeCache(self.configs[graph], key)
        return engine

    def config(self, graph: str, engine: Any) -> Any:
        """How TensorRT for RTX runs an engine. It compiles before the first run, so that all runs compute the same."""
        trt, config = self.trt, engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if graph in EACH_STEP:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return config

    def binding(self, graph: str, shapes: Shapes) -> Binding:
        """The binding of a graph for these input shapes, which it must have been built for."""
        profile = chosen_profile(self.artifact(graph), shapes, self.geometry.vae_scale)
        return self.bindings[graph].get(tuple(shapes.items()), partial(self.bind, graph, profile, shapes))

    def bind(self, graph: str, profile: int, shapes: Shapes) -> Binding:
        """A new binding. The flavours record a step in their own ways: RTX itself, data-centre TensorRT not."""
        artifact, engine = self.artifact(graph), self.engines[graph]
        by_user = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(self.configs.get(graph, by_user))
        if context is None:
            raise RuntimeError(f"TensorRT made no context of {graph}: there is not enough memory to allocate one")
        dtypes = {name: dtype for name, (dtype, *_) in (artifact.inputs | artifact.outputs).items()}
        recorded = graph in EACH_STEP and self.flavour == "tensorrt"
        return Binding(self.trt, self.device, self.scratch, context, profile, shapes, dtypes, CHANGING, recorded)

    def wide_runner(self, graph: str) -> "EngineRunner | None":
        if self.manifest.precision != "float16" or graph != "vae_decoder":
            return None
        if WIDE not in self.engines:
            self.engines[WIDE] = self.open(WIDE)
        return EngineRunner(self, WIDE)

    def to_device(self, array: np.ndarray) -> Buffer:
        return self.device.put(array)

    def to_numpy(self, value: Buffer) -> np.ndarray:
        return self.device.get(value)

    def runner(self, graph: str) -> "EngineRunner":
        return EngineRunner(self, graph)


class EngineRunner:
    """Runs an engine with outputs of its own, one set for each set of input shapes."""

    def __init__(self, backend: TensorRTBackend, graph: str) -> None:
        self.backend, self.graph = backend, graph
        self.outputs: dict[tuple, dict[str, Buffer]] = {}

    def __call__(self, feeds: dict[str, Buffer]) -> dict[str, Buffer]:
        device, shapes = self.backend.device, {name: buffer.shape for name, buffer in feeds.items()}
        with device.lock:
            binding = self.backend.binding(self.graph, shapes)
            results = binding.run(feeds)
            key = tuple(shapes.items())
            if key not in self.outputs:
                self.outputs[key] = {name: device.empty(one.shape, one.dtype) for name, one in results.items()}
            for name, buffer in self.outputs[key].items():
                device.copy(results[name], buffer)
            if binding.fresh and self.graph in self.backend.caches:
                self.backend.caches[self.graph].store()
        return self.outputs[key]
