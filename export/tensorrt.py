"""TensorRT engines from the exported ONNX graphs, built in a child process.

The child's memory goes back when it ends, and a crash in native code becomes an error message.
TensorRT for RTX builds without a GPU; data-centre TensorRT is used where it can be imported. Both
take their precision from the ONNX graph (strongly typed).
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from ..core.errors import MRCError
from ..engine.manifest import Artifact
from ..engine.profiles import Profile

RTX_LIBRARIES = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")
INSTALL = "pip install 'mrc-edit[trt-rtx]' for TensorRT-RTX, or install NVIDIA TensorRT 10 or later"


def build_engine(folder: Path, source: Artifact, shapes: Profile) -> Artifact:
    """Build the engine of one ONNX artifact under `folder/tensorrt`.

    Raises:
        MRCError: no TensorRT here, or the build failed; with TensorRT's own words.
    """
    stem = Path(source.path).parent.name
    request = {
        "onnx": str(folder / source.path),
        "engine": str(folder / "tensorrt" / stem),
        "precision": source.precision,
        "shapes": shapes,
    }
    (folder / "tensorrt").mkdir(exist_ok=True)
    child = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(request), text=True, capture_output=True, check=False
    )
    if child.returncode:
        words = (child.stderr or child.stdout).strip().splitlines()[-8:] or ["nothing was printed"]
        raise MRCError(f"TensorRT could not build {stem} (exit {child.returncode}): {' | '.join(words)}")
    built = json.loads(child.stdout.splitlines()[-1])
    return Artifact(
        role=source.role,
        runtime=built["runtime"],
        precision=source.precision,
        path=f"tensorrt/{built['name']}",
        inputs=source.inputs,
        outputs=source.outputs,
        profile=shapes,
        target=built["target"],
    )


def load_tensorrt() -> tuple[ModuleType, str]:
    """The TensorRT module of this machine and its flavour."""
    try:
        import tensorrt

        return tensorrt, "tensorrt"
    except ImportError:
        pass
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as libraries  # its import makes the .so.1 links

        for name in RTX_LIBRARIES:
            ctypes.CDLL(str(Path(libraries.__file__).parent / name), ctypes.RTLD_GLOBAL)
        import tensorrt_rtx_bindings

        return tensorrt_rtx_bindings, "tensorrt_rtx"
    except (ImportError, OSError) as error:
        raise MRCError(f"no TensorRT can be imported ({error}); {INSTALL}") from None


def available() -> str:
    """Flavour and version of the TensorRT that would build here.

    Raises:
        MRCError: none can be imported.
    """
    child = subprocess.run([sys.executable, "-m", __name__, "--version"], capture_output=True, text=True, check=False)
    if child.returncode:
        raise MRCError((child.stderr.strip().splitlines() or [f"TensorRT crashed on import; {INSTALL}"])[-1])
    return child.stdout.strip()


def build(request: dict) -> dict[str, str]:
    """Body of the child process: parse, build, write."""
    trt, flavour = load_tensorrt()
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(request["onnx"]):
        raise MRCError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # the bindings' way to downcast a layer
            layer.attention.decomposable = True  # float32 and odd head sizes have no fused kernel
    config = builder.create_builder_config()
    optimization = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        shape = request["shapes"][name]
        optimization.set_shape(name, shape["min"], shape["opt"], shape["max"])
    config.add_optimization_profile(optimization)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise MRCError(f"{flavour} {trt.__version__} gave no engine")
    # TensorRT-RTX builds for SM 8.0, 8.6, 8.9, 12.0 and later by default; TensorRT for the GPU of this machine
    target = "sm80+" if flavour == "tensorrt_rtx" else gpu_target(trt)
    path = Path(f"{request['engine']}.{flavour}.{target}.{request['precision']}.engine")
    path.write_bytes(memoryview(plan))
    return {"runtime": flavour, "target": target, "name": path.name}


def gpu_target(trt: ModuleType) -> str:
    import torch

    return "sm{}{}".format(*torch.cuda.get_device_capability())


if __name__ == "__main__":
    try:
        if "--version" in sys.argv:
            module, name = load_tensorrt()
            print(name, module.__version__)
        else:
            print(json.dumps(build(json.load(sys.stdin))))
    except MRCError as error:
        sys.exit(str(error))
