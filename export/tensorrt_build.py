"""The process that builds one TensorRT engine; request and answer are JSON."""

import ctypes
import json
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ..core.errors import MRCError
from ..engine.backends import cuda
from ..engine.backends.tensorrt_library import load_tensorrt, words

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
INSTALL = "pip install 'mrc-edit[trt-rtx]' for TensorRT for RTX, or 'mrc-edit[trt]' for data-centre TensorRT"


def describe() -> dict[str, Any]:
    """The TensorRT of this machine: data-centre if it is there, otherwise RTX; and the GPUs it builds for."""
    for flavour in ("tensorrt", "tensorrt_rtx"):
        try:
            trt = load_tensorrt(flavour)
        except MRCError as error:
            missing = error
        else:
            return {"flavour": flavour, "version": trt.__version__, "targets": targets(trt, flavour)}
    raise MRCError(f"{missing}; {INSTALL}")


def targets(trt: Any, flavour: str) -> list[str]:
    """The GPUs that a flavour builds for: RTX for all it knows, data-centre TensorRT for the one in this machine."""
    if flavour == "tensorrt":
        return [f"sm{cuda.device().capability}"]
    return sorted((name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")), key=number)


def number(target: str) -> int:
    return int(target.removeprefix("sm"))


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse, build, write; what there is to say about it."""
    trt, flavour = load_tensorrt(request["flavour"]), request["flavour"]
    said, start = words(trt), time.perf_counter()
    builder = trt.Builder(said.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, said.logger)
    if not parser.parse_from_file(request["onnx"]):
        raise MRCError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    layers = prepared(trt, network)
    parsed = time.perf_counter()
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)  # memory by shapes
    for profile in request["profiles"]:
        add_profile(builder, network, config, profile)
    if flavour == "tensorrt_rtx":
        config.num_compute_capabilities = len(request["targets"])
        for i, target in enumerate(request["targets"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise MRCError(f"{flavour} {trt.__version__} gave no engine: {said()}")
    Path(request["engine"]).write_bytes(memoryview(plan))
    return {
        "layers": dict(sorted(layers.items())),
        "parse_seconds": round(parsed - start, 3),
        "build_seconds": round(time.perf_counter() - parsed, 3),
        "peak_memory_bytes": peak_memory(),
        "engine_bytes": plan.nbytes,
    }


def peak_memory() -> int:
    """The most bytes that this process had at once; its ru_maxrss begins with that of the process that started it."""
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[0]) * 1024


def prepared(trt: Any, network: Any) -> Counter[str]:
    """Let attention be written out where it has no fused kernel (float32, odd head sizes); the layers by kind."""
    layers: Counter[str] = Counter()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        layers[layer.type.name.lower()] += 1
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # the bindings' way to downcast a layer
            layer.attention.decomposable = True
    return layers


def add_profile(builder: Any, network: Any, config: Any, bounds: dict[str, dict[str, list[int]]]) -> None:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        profile.set_shape(name, bounds[name]["min"], bounds[name]["opt"], bounds[name]["max"])
    if config.add_optimization_profile(profile) < 0:
        raise MRCError(f"TensorRT does not take the shapes {bounds}")


def main() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)  # nobody waits for the engine then
    request = json.load(sys.stdin)
    try:
        print(json.dumps(describe() if request["do"] == "describe" else build(request)))
    except (MRCError, OSError, MemoryError) as error:
        sys.exit(" ".join(str(error).split()) or "there is not enough memory")


if __name__ == "__main__":
    main()
