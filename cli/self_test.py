"""One backend edits a photograph with `mini`, in a process of its own that `mrc doctor` starts.

Reads `{"backend": NAME}` from standard input and answers as `core.child` expects.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import MRCError
from ..engine import Engine
from ..engine.images import load_image
from ..engine.shipped import MODELS

PHOTOGRAPH = Path(__file__).parents[1] / "demo" / "chelsea.jpg"
SIDE = 16  # of what is compared
LIKENESS = 0.5  # least correlation of the edit with the photograph: noise has none


def edit_with(backend: str) -> dict[str, Any]:
    """Seconds of one edit, and the edit as `[16, 16, 3]` in 0…1.

    Raises:
        MRCError: the backend cannot be opened, or its edit is not one of this photograph.
    """
    engine = Engine.from_pretrained("mini", backend)
    start = time.perf_counter()
    result = engine.edit(PHOTOGRAPH, "make it look like a sunset", seed=0, num_inference_steps=2)
    seconds = time.perf_counter() - start
    left, top, right, bottom = result.boxes[0]
    edited = small(result.images[0])
    source = small(load_image(PHOTOGRAPH).crop((round(left), round(top), round(right), round(bottom))))
    likeness = float(np.corrcoef(edited.mean(axis=2).ravel(), source.mean(axis=2).ravel())[0, 1])
    if not likeness >= LIKENESS:
        raise MRCError(f"its edit of the package's photograph does not look like it (correlation {likeness:.2f})")
    return {"seconds": seconds, "edit": edited.round(3).tolist(), "precision": engine.backend.precision}


def small(image: Any) -> np.ndarray:
    return np.asarray(image.resize((SIDE, SIDE)), dtype=np.float32) / 255


def open_gpu() -> None:
    """Open the GPU; engines are in no folder of this package."""
    from ..engine.backends.cuda import device

    device()


def providers() -> dict[str, str]:
    """Of ONNX Runtime's providers those that are here ("") and what others need."""
    import onnxruntime

    from ..engine.backends.providers import CPU, NEEDS

    here = onnxruntime.get_available_providers()
    return {name: "" if name in here else NEEDS[name] for name in (CPU, *NEEDS)}


def answer(backend: str) -> dict[str, Any]:
    answered: dict[str, Any] = {}
    if backend == "onnxruntime":
        answered["providers"] = providers()
    try:
        if backend == "tensorrt":
            open_gpu()
        elif MODELS["mini"].is_dir():
            answered |= edit_with(backend)
        elif backend == "torch":
            check_kernels()
    except MRCError as error:
        answered["error"] = str(error)
    return answered


def check_kernels() -> None:
    """Where there is no `mini`: the kernels against their references.

    Raises:
        MRCError: they differ.
    """
    import torch

    from ..kernels import ops

    hidden, weight, bias = torch.randn(2, 32, 8, 8), torch.randn(32), torch.randn(32)
    arguments = (hidden, weight, bias, 8, 1e-5, torch.randn(2, 32), True)
    computed = ops.group_norm_silu(*arguments)
    with ops.reference_kernels():
        expected = ops.group_norm_silu(*arguments)
    error = float((computed - expected).abs().max())
    if not error < 1e-4:
        raise MRCError(f"the kernel of group norm differs from its reference by {error:.1e}")


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin)["backend"])))
