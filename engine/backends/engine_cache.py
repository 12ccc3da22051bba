"""Engines that ONNX Runtime's TensorRT providers build: what they depend on, and the timings of their builds."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.files import write_file
from .providers import RTX, plug_in

CARDS = Path("/proc/driver/nvidia/gpus")
TIMINGS = "*.timing"  # what TensorRT measured on this GPU, of use to other graphs too


def engines_in(place: Path) -> dict[str, str]:
    """The options with which TensorRT loads the engines in a folder, and writes those that are missing."""
    return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(place)}


@contextmanager
def timings(place: Path) -> Iterator[None]:
    """Put the timings of earlier builds into `place`, where one builds; then take its own out, for later ones."""
    stored = place.parent / "onnxruntime-timings"
    for path in stored.glob(TIMINGS):
        (place / path.name).write_bytes(path.read_bytes())
    yield
    stored.mkdir(exist_ok=True)
    for path in place.glob(TIMINGS):
        write_file(stored / path.name, path.read_bytes())
        path.unlink()


def cards() -> str:
    """The models of the GPUs here, as the driver tells; an engine is for one."""
    found = sorted(CARDS.glob("*/information"))
    lines = [line for path in found for line in path.read_text().splitlines()]
    return "\n".join(line for line in lines if line.startswith("Model"))


def tensorrt_machine() -> str:
    """The GPUs, and the version of TensorRT: an engine is for one."""
    try:
        version = ctypes.CDLL("libnvinfer.so.10").getInferLibVersion()
    except OSError:
        version = "unknown"
    return f"{cards()} {version}"


def rtx_machine() -> str:
    """The GPUs, and the version of the plug-in."""
    device = plug_in(RTX)
    return f"{cards()} {device.ep_metadata if device else ''}"
