"""Models that are part of the package, by name."""

from pathlib import Path

from .backends import BACKENDS, state_of

MODELS = {"mini": Path(__file__).parents[1] / "mini"}
FOLDERS = {"export": "onnx", "checkpoint": "checkpoint"}


def shipped(model: str | Path, backend: str) -> Path:
    """The folder of a shipped model that `backend` reads; any other `model` is a folder already.

    A model folder of that name in the working directory goes first. "auto" takes the export where ONNX
    Runtime is installed, else the checkpoint.
    """
    own = any((Path(model) / name).is_file() for name in ("model_index.json", "manifest.json"))
    if str(model) not in MODELS or own:
        return Path(model)
    if backend == "auto":
        backend = "onnxruntime" if state_of("onnxruntime") == "available" else "eager"
    reads = BACKENDS[backend].reads if backend in BACKENDS else "export"
    return MODELS[str(model)] / FOLDERS[reads]
