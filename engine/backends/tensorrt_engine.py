"""A TensorRT engine of an export: checked, opened, and run at the shapes that it was built for."""

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

from ...core.errors import MRCError
from ..manifest import Artifact, Bounds
from .cuda import Buffer, Device, Recording
from .tensorrt_library import words

REMEDY = "run mrc-export --trt again"
DIAGNOSES = {  # bits of trt.EngineInvalidityDiagnostics
    "VERSION_MISMATCH": "another version of TensorRT for RTX built it",
    "UNSUPPORTED_CC": "it was built for {target} and this GPU is sm{capability}",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "it is no engine of this TensorRT for RTX",
    "CUDA_ERROR": "CUDA's driver or runtime is not installed as it should be",
}
Shapes = Mapping[str, tuple[int, ...]]


def open_engine(trt: Any, artifact: Artifact, content: bytes, built_by: str, capability: int) -> Any:
    """The engine in `content`, whose digest was checked.

    Args:
        built_by: the version of TensorRT in the manifest; `capability`: of this GPU.

    Raises:
        MRCError: it was built by another version or for other GPUs, or TensorRT refuses it.
    """
    name, said = artifact.path, words(trt)
    if built_by != trt.__version__:
        raise MRCError(f"{name} was built by {artifact.runtime} {built_by} and this is {trt.__version__}; {REMEDY}")
    runtime = trt.Runtime(said.logger)
    runtime.engine_host_code_allowed = False  # an engine may hold code for the CPU
    if artifact.runtime == "tensorrt_rtx":
        check_validity(trt, runtime, artifact, content, capability)
    elif artifact.target != f"sm{capability}":
        raise MRCError(f"{name} was built for {artifact.target} and this GPU is sm{capability}; {REMEDY} here")
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise MRCError(f"TensorRT refuses {name}: {said()}; {REMEDY}")
    return engine


def check_validity(trt: Any, runtime: Any, artifact: Artifact, content: bytes, capability: int) -> None:
    """Put into words what TensorRT for RTX says of an engine before it is opened.

    Raises:
        MRCError: it cannot run here.
    """
    verdict, bits = runtime.get_engine_validity(content)
    known = {flag: int(getattr(trt.EngineInvalidityDiagnostics, flag).value) for flag in DIAGNOSES}
    here = {"target": artifact.target, "capability": capability}
    found = [DIAGNOSES[flag].format(**here) for flag, bit in known.items() if bits & bit]
    text = ", and ".join(found) or words(trt)()
    if verdict == trt.EngineValidity.INVALID:
        raise MRCError(f"{artifact.path} cannot run here: {text}; mend that, or {REMEDY} (--trt-target sm{capability})")
    if verdict == trt.EngineValidity.SUBOPTIMAL:
        warnings.warn(f"{artifact.path} may run slower than it could here: {text}", stacklevel=2)


def chosen_profile(artifact: Artifact, shapes: Shapes, scale: int) -> int:
    """The number of the first profile that has these input shapes.

    Raises:
        MRCError: none has; with the sizes that there are.
    """
    for number, profile in enumerate(artifact.profiles):
        if not outside(profile, shapes):
            return number
    widest = artifact.profiles[-1]
    name = outside(widest, shapes)[0]
    raise MRCError(
        f"{artifact.role} got {name} {'×'.join(map(str, shapes[name]))} and its engine takes "
        f"{'×'.join(map(str, widest[name].min))} to {'×'.join(map(str, widest[name].max))}"
        f"{in_pixels(artifact, name, widest[name], scale)}; edit within that, or {REMEDY} with other "
        "--min-size, --max-size or --max-batch"
    )  # fmt: skip


def outside(profile: dict[str, Bounds], shapes: Shapes) -> list[str]:
    """The inputs whose shape a profile does not have."""
    return [
        name
        for name, bounds in profile.items()
        if len(shapes[name]) != len(bounds.min)
        or any(not a <= n <= b for a, n, b in zip(bounds.min, shapes[name], bounds.max, strict=True))
    ]


def in_pixels(artifact: Artifact, name: str, bounds: Bounds, scale: int) -> str:
    """The sides of images that the bounds of an input mean, in words; empty if it has none."""
    _, *dims = artifact.inputs[name]
    for side, factor in (("height", 1), ("rows", scale)):
        if side in dims:
            at = dims.index(side)
            return f" (images of {bounds.min[at] * factor} to {bounds.max[at] * factor} pixels a side)"
    return ""


class Scratch:
    """The memory for activations, one for all contexts: they run one after another."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.buffer = device.empty((256,), "uint8")

    def fit(self, size: int) -> Buffer:
        """At least so many bytes. What grows has another address; the old memory lives until what uses it is done."""
        if size > self.buffer.nbytes:
            self.buffer = self.device.empty((size,), "uint8")
        return self.buffer


class Binding:
    """One execution context at one set of input shapes, with inputs and outputs at addresses that stay.

    Args:
        context: new, and its own.
        changing: inputs that every run copies; of the others it copies those that are another buffer than before.
        recorded: record its launches at the second run and replay them.
    """

    def __init__(
        self, trt: Any, device: Device, scratch: Scratch, context: Any, profile: int, shapes: Shapes,
        dtypes: Mapping[str, str], changing: frozenset[str], recorded: bool,
    ) -> None:  # fmt: skip
        self.said, self.device, self.scratch, self.context = words(trt), device, scratch, context
        self.changing, self.recorded = changing, recorded
        engine = context.engine
        self.need(context.set_optimization_profile_async(profile, device.stream), "choose a profile")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in inputs:
            self.need(context.set_input_shape(name, shapes[name]), f"take {name} of shape {shapes[name]}")
        self.need(not context.infer_shapes(), "infer its shapes")
        self.inputs = {name: device.empty(shapes[name], dtypes[name]) for name in inputs}
        self.outputs = {
            name: device.empty(tuple(context.get_tensor_shape(name)), dtypes[name])
            for name in names
            if name not in inputs
        }
        for name, buffer in (self.inputs | self.outputs).items():
            self.need(context.set_tensor_address(name, buffer.address), f"bind {name}")
        self.activations = int(context.update_device_memory_size_for_shapes())
        self.held: dict[str, weakref.ref[Buffer]] = {}  # what the inputs were last copied from
        self.memory = 0  # address that the context has
        self.recording: Recording | None = None
        self.runs = 0  # with the memory that it has
        self.fresh = True  # until a second run

    def need(self, done: object, what: str) -> None:
        if not done:
            raise RuntimeError(f"TensorRT could not {what}: {self.said()}")

    def run(self, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Compute the outputs, which the next run overwrites."""
        for name, buffer in self.inputs.items():
            last = self.held.get(name)
            if name in self.changing or last is None or last() is not feeds[name]:
                self.device.copy(feeds[name], buffer)
                self.held[name] = weakref.ref(feeds[name])
        self.fresh = not self.memory
        memory = self.scratch.fit(self.activations)
        if memory.address != self.memory:
            self.context.set_device_memory(memory.address, memory.nbytes)
            self.memory, self.recording, self.runs = memory.address, None, 0
        self.runs += 1
        if self.recorded and self.runs == 2:  # TensorRT sets things up in the first, which cannot be recorded
            self.recording = self.device.record(self.enqueue)
        if self.recording:
            self.recording.launch()
        else:
            self.enqueue(self.device.stream)
        return self.outputs

    def enqueue(self, stream: int) -> None:
        self.need(self.context.execute_async_v3(stream), "run")
