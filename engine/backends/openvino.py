"""OpenVINO on an export folder: the same ONNX graphs on any x86-64 or Arm CPU; no PyTorch.

A graph is compiled for each set of input shapes. Compiled models are not stored on disk: at full size one is as large
as the float32 weights, and takes longer to write than the graph to compile. So few are kept in memory, too.
"""

from pathlib import Path

import numpy as np
import openvino
from openvino import opset13, properties

from ...core.errors import MRCError, reason
from ..failures import ADVICE, memory_ran_out
from ..graphs import EACH_STEP, GRAPHS
from ..manifest import Artifact
from .exported import ExportBackend
from .recent import Recent

SHAPES = 2  # with both, a size that alternates with another is compiled once

# One for the process, never freed. A Core's CPU plugin gives the thread a signal stack of its own (openvino 2026.4).
# Of two that are freed in the order they were made, the second restores the freed stack of the first: the next signal
# kills the process.
CORE = openvino.Core()


def load(
    folder: Path, precision: str | None = None, shapes: int = SHAPES, threads: int | None = None
) -> "OpenVinoBackend":
    return OpenVinoBackend(folder, precision, shapes, threads)


class OpenVinoBackend(ExportBackend[openvino.Tensor]):
    """Compiled models, one for each graph and set of shapes.

    `precision` is of the arithmetic: float32, bfloat16, or int8 in the U-Net and bfloat16 elsewhere; by
    default bfloat16 where the CPU has instructions for it, float32 elsewhere.

    Of each graph the models of the last `shapes` sets of shapes are kept: each has its own copy of the weights.
    """

    def __init__(
        self, folder: Path, precision: str | None = None, shapes: int = SHAPES, threads: int | None = None
    ) -> None:
        if not isinstance(shapes, int) or isinstance(shapes, bool) or shapes < 1:
            raise MRCError(f"shapes is {shapes!r}; give the number of sets of shapes to keep compiled, from 1")
        if precision not in (None, "float32", "bfloat16", "int8"):
            raise MRCError(f"precision is {precision!r}; OpenVINO computes in float32, bfloat16 or int8")
        super().__init__(folder, "int8" if precision == "int8" else None)
        fast = "BF16" in CORE.get_property("CPU", properties.device.capabilities)
        if precision == "bfloat16" and not fast:
            raise MRCError("precision is 'bfloat16' and this CPU has no instructions for it; use float32 or int8")
        self.threads = {} if threads is None else {properties.inference_num_threads: threads}
        self.precision = precision or ("bfloat16" if fast else "float32")
        self.half = fast and self.precision != "float32"
        self.graphs = {graph: self.read(self.artifact(graph)) for graph in GRAPHS}
        self.models = {graph: Recent[openvino.CompiledModel](shapes) for graph in GRAPHS}

    def compiled(self, graph: str, shapes: dict[str, tuple[int, ...]]) -> openvino.CompiledModel:
        """The graph compiled for these input shapes."""
        return self.models[graph].get(tuple(shapes.values()), lambda: self.compile(graph, shapes))

    def read(self, artifact: Artifact) -> openvino.Model:
        """A graph as it is now: all shapes are compiled from it, though the folder may hold another export by then.

        OpenVINO maps the weights of the copy; no other process sees them, and they take no memory of their own.
        """
        with self.checked_copy(artifact) as path:
            try:
                return CORE.read_model(path)
            except RuntimeError as error:
                raise refused(artifact, error) from None

    def compile(self, graph: str, shapes: dict[str, tuple[int, ...]]) -> openvino.CompiledModel:
        half = self.half and GRAPHS[graph].half
        settings = {
            properties.hint.inference_precision: openvino.Type.bf16 if half else openvino.Type.f32,
            properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
            **self.threads,
        }
        try:
            return CORE.compile_model(self.reshaped(graph, shapes), "CPU", settings)
        except (RuntimeError, MemoryError) as error:
            if memory_ran_out(error):
                raise MRCError(f"there is not enough memory to compile {graph}; {ADVICE}") from None
            raise refused(self.artifact(graph), error) from None

    def reshaped(self, graph: str, shapes: dict[str, tuple[int, ...]]) -> openvino.Model:
        model = self.graphs[graph].clone()
        if graph in EACH_STEP:
            part_text(model)
        names = {name for port in model.inputs for name in port.get_names()}
        fixed = {name: list(shape) for name, shape in shapes.items() if name in names}
        for port in model.inputs:
            if port.any_name.startswith("text_kv."):
                fixed[port.any_name] = [*shapes["text_kv"][:2], port.partial_shape[2].get_length()]
        model.reshape(fixed)
        return model

    def to_device(self, array: np.ndarray) -> openvino.Tensor:
        return openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)

    def to_numpy(self, value: openvino.Tensor) -> np.ndarray:
        return value.data

    def runner(self, graph: str) -> "RequestRunner":
        return RequestRunner(self, graph)


def refused(artifact: Artifact, error: Exception) -> MRCError:
    return MRCError(f"OpenVINO refuses {artifact.path}: {reason(error)}; run mrc-export again")


class RequestRunner:
    """Runs a graph in requests of its own, one for each set of input shapes."""

    def __init__(self, backend: OpenVinoBackend, graph: str) -> None:
        self.backend, self.graph = backend, graph
        self.outputs = list(backend.artifact(graph).outputs)  # a port may have several names
        self.requests: dict[tuple, openvino.InferRequest] = {}

    def __call__(self, feeds: dict[str, openvino.Tensor]) -> dict[str, openvino.Tensor]:
        shapes = {name: tuple(tensor.shape) for name, tensor in feeds.items()}
        key = tuple(shapes.values())
        if key not in self.requests:
            self.requests[key] = self.backend.compiled(self.graph, shapes).create_infer_request()
            if self.graph in EACH_STEP:
                set_parts(self.requests[key], feeds["text_kv"].data)
        request = self.requests[key]
        for port in request.model_inputs:
            for name in port.get_names() & feeds.keys():  # a port may have several names
                request.set_tensor(port, feeds[name])
        request.infer()
        return {name: request.get_output_tensor(i) for i, name in enumerate(self.outputs)}


def part_text(model: openvino.Model) -> None:
    """Make each key and value of the text an input of a step graph, in place: a split copies them at every step."""
    whole = next(node for node in model.get_parameters() if "text_kv" in node.output(0).get_names())
    consumers = [target.get_node() for target in whole.output(0).get_target_inputs()]
    if [node.get_type_name() for node in consumers] not in (["Split"], ["VariadicSplit"]):
        return  # unused; or half precision, which converts first
    (split,) = consumers
    parts = []
    for i, output in enumerate(split.outputs()):
        part = opset13.parameter(output.get_partial_shape(), output.get_element_type())
        part.output(0).set_names({f"text_kv.{i}"})
        for target in output.get_target_inputs():
            target.replace_source_output(part.output(0))
        parts.append(part)
    model.add_parameters(parts)
    model.remove_parameter(whole)


def set_parts(request: openvino.InferRequest, text_kv: np.ndarray) -> None:
    """Set those inputs, if any, to copies from `[N, L, Σk]`, which stay for all runs of the request."""
    start = 0
    for port in request.model_inputs:
        if port.any_name.startswith("text_kv."):
            end = start + port.shape[2]
            request.set_tensor(port, openvino.Tensor(np.ascontiguousarray(text_kv[..., start:end])))
            start = end
