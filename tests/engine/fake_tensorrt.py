"""TensorRT for tests, in both flavours: an "engine" is an ONNX graph, which ONNX Runtime runs at the addresses of a
fake GPU (fake_cuda.py). It is as strict as the real one is documented to be."""

import json
import math
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import onnxruntime

from mrc_edit.core.files import file_digest
from mrc_edit.engine.graphs import GRAPHS
from mrc_edit.engine.manifest import Artifact, read_manifest
from mrc_edit.export.tensorrt import engine_profiles

VERSION = "11.4.0.106"
FLAGS = ("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY",
         "MALFORMED_ENGINE", "CUDA_ERROR")  # fmt: skip


def add_engines(folder, original, flavour, target="sm89", sizes=(64, 128, 256), max_batch=2):
    """Give the export in `folder`, a copy of `original`, stand-in engines."""
    manifest = read_manifest(folder)
    (folder / "tensorrt").mkdir()
    scale, artifacts = manifest.geometry.vae_scale, list(manifest.artifacts)
    for graph in GRAPHS:
        source = manifest.artifact(graph, "onnx")
        profiles = engine_profiles(source, sizes, manifest.geometry, max_batch)
        path = f"tensorrt/{graph}.engine"
        content = {
            "onnx": str(original / source.path), "inputs": source.inputs, "outputs": source.outputs, "scale": scale,
            "profiles": [{name: vars(bounds) for name, bounds in each.items()} for each in profiles],
        }  # fmt: skip
        (folder / path).write_text(json.dumps(content))
        manifest.files[path] = file_digest(folder / path)
        artifacts.append(
            Artifact(graph, flavour, source.precision, path, source.inputs, source.outputs, None, profiles, target)
        )
    manifest.artifacts[:] = artifacts
    manifest.tools[flavour] = VERSION
    manifest.write(folder)
    return folder


class FakeTensorRT:
    """As the module.

    Attributes:
        runs: enqueued runs by graph; contexts: all that were made; validity: what RTX says of every engine.
    """

    __version__ = VERSION
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    EngineValidity = SimpleNamespace(VALID=0, SUBOPTIMAL=1, INVALID=2)
    EngineInvalidityDiagnostics = SimpleNamespace(
        **{name: SimpleNamespace(value=1 << i) for i, name in enumerate(FLAGS)}
    )

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self, gpu, flavour):
        self.gpu, self.flavour = gpu, flavour
        self.runs, self.contexts, self.validity = Counter(), [], (0, 0)
        self.opened: list[bytes] = []
        self.saved: list[bytes] = []

    def Runtime(self, logger):
        return FakeRuntime(self, logger)


class FakeRuntime:
    engine_host_code_allowed = True

    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def get_engine_validity(self, content):
        assert self.trt.flavour == "tensorrt_rtx"
        return self.trt.validity

    def deserialize_cuda_engine(self, content):
        assert self.engine_host_code_allowed is False
        self.trt.opened.append(content)
        try:
            return FakeEngine(self.trt, self.logger, json.loads(content))
        except ValueError:
            self.logger.log(self.trt.ILogger.ERROR, "no magic tag")
            return None


@cache
def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


class FakeEngine:
    def __init__(self, trt, logger, content):
        self.trt, self.logger, self.content = trt, logger, content
        self.session = session(content["onnx"])
        self.names = [*content["inputs"], *content["outputs"]]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, i):
        return self.names[i]

    def get_tensor_mode(self, name):
        return "in" if name in self.content["inputs"] else "out"

    def create_runtime_config(self):
        return FakeConfig(self.trt)

    def create_execution_context(self, how):
        strategy = how.allocation if isinstance(how, FakeConfig) else how
        assert strategy == "user" and (isinstance(how, FakeConfig) == (self.trt.flavour == "tensorrt_rtx"))
        context = FakeContext(self, how)
        self.trt.contexts.append(context)
        return context


class FakeConfig:
    allocation = cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = None

    def __init__(self, trt):
        self.trt, self.cache = trt, None

    def set_execution_context_allocation_strategy(self, strategy):
        self.allocation = strategy

    def create_runtime_cache(self):
        return FakeCache(self.trt)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class FakeCache:
    """Compiled code: a line for each set of shapes, if of this GPU."""

    def __init__(self, trt):
        self.trt, self.lines, self.compiled = trt, [], 0

    def deserialize(self, content):
        if not content.startswith(b"driver 1"):
            return False
        self.lines = content.decode().splitlines()[1:]
        return True

    def compile(self, line):
        if line not in self.lines:
            self.lines.append(line)
            self.compiled += 1

    def serialize(self):
        return bytearray("\n".join(["driver 1", *self.lines]).encode())


class FakeContext:
    def __init__(self, engine, how):
        self.engine, self.config = engine, how
        self.trt, self.gpu = engine.trt, engine.trt.gpu
        self.profile, self.shapes, self.addresses = None, {}, {}
        self.memory, self.captured, self.ran = None, 0, False

    def fail(self, words):
        self.engine.logger.log(self.trt.ILogger.ERROR, words)
        return False

    def set_optimization_profile_async(self, number, stream):
        self.profile = self.engine.content["profiles"][number]
        return True

    def set_input_shape(self, name, shape):
        bounds = self.profile[name]
        if any(not a <= n <= b for a, n, b in zip(bounds["min"], shape, bounds["max"], strict=True)):
            return self.fail(f"{name} {shape} is outside of the profile")
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self):
        return [name for name in self.engine.content["inputs"] if name not in self.shapes]

    def get_tensor_shape(self, name):
        content = self.engine.content
        if name in content["inputs"]:
            return self.shapes[name]
        scale = content["scale"]
        known = {
            dim: size
            for key, (_, *dims) in content["inputs"].items()
            for dim, size in zip(dims, self.shapes[key], strict=True)
        }
        if "rows" in known:
            known |= {"height": known["rows"] * scale, "width": known["columns"] * scale}
        elif "height" in known:
            known |= {"rows": known["height"] // scale, "columns": known["width"] // scale}
        return tuple(known.get(dim, dim) for dim in content["outputs"][name][1:])

    def set_tensor_address(self, name, address):
        self.gpu.view(address, 1)
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self):
        assert not self.infer_shapes() and self.profile is not None
        return 1000 + sum(math.prod(shape) for shape in self.shapes.values())

    def set_device_memory(self, address, size):
        assert size >= self.update_device_memory_size_for_shapes()
        self.memory = (address, size)

    def execute_async_v3(self, stream):
        if self.memory is None:
            return self.fail("no device memory")
        capturing = stream in self.gpu.recorded
        if capturing and not self.ran:
            return self.fail("the first run cannot be captured")
        assert not (capturing and self.trt.flavour == "tensorrt_rtx"), "RTX captures itself"
        self.ran, self.captured = True, self.captured + capturing
        if isinstance(self.config, FakeConfig):
            self.config.cache.compile(str(sorted(self.shapes.items())))
        memory, graph = self.memory, self.engine.content["onnx"].split("/")[-2]

        def work():
            self.trt.runs[graph] += 1
            self.compute(*memory)

        self.gpu.enqueue(stream, work)
        return True

    def compute(self, address, size):
        content, get = self.engine.content, self.gpu.array
        self.gpu.view(address, size).fill(0xFF)  # the activations: of nobody else
        feeds = {
            name: get(self.addresses[name], self.shapes[name], dtype).copy()
            for name, (dtype, *_) in content["inputs"].items()
        }
        known = {value.name for value in self.engine.session.get_inputs()}
        results = self.engine.session.run(None, {name: value for name, value in feeds.items() if name in known})
        for name, result in zip(content["outputs"], results, strict=True):
            assert result.shape == self.get_tensor_shape(name), name
            np.copyto(get(self.addresses[name], result.shape), result)


class FakePack:
    """libmrc_cuda.so with `mrc_cuda_sampler_step` alone, on the fake GPU."""

    def __init__(self, gpu, status=0):
        self.gpu, self.status, self.steps = gpu, status, 0

    def mrc_cuda_status(self):
        return self.status

    def mrc_cuda_error_string(self, status):
        return b"no code for this GPU" if status == 16 else b"no CUDA driver"

    def mrc_cuda_sampler_step(self, *arguments):
        kind, noise, latents, denoised, fresh, batch, size, *rest = (argument.value for argument in arguments)
        coefficients, of_denoised, scale, item, inputs, sample, stream = rest
        assert kind == 0 and size % 16 == 0

        def work():
            get = self.gpu.array
            before, last, epsilon = (get(at, (batch, size)) for at in (latents, denoised, noise))
            (a, b, c, e), (p, q) = get(coefficients, (4,)), get(of_denoised, (2,))
            after = a * before + b * epsilon + c * last
            if fresh is not None:
                after += e * get(fresh, (batch, size))
            last[:] = p * before + q * epsilon
            before[:] = after
            rows = get(sample, (inputs, 2 * size))
            rows[:, :size] = get(scale, (1,)) * after[get(item, (inputs,), np.int64)]

        self.steps += 1
        self.gpu.enqueue(stream, work)
        return 0
