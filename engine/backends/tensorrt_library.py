"""TensorRT in its two flavours, `tensorrt` (data-centre) and `tensorrt_rtx`: one interface under two names."""

import ctypes
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ...core.errors import MRCError

EXTRAS = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}
RTX_LIBRARIES = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")
KEPT = 8  # lines of TensorRT that an error shows


def load_tensorrt(flavour: str) -> Any:
    """The module of a flavour.

    Raises:
        MRCError: it cannot be imported.
    """
    try:
        return load_rtx() if flavour == "tensorrt_rtx" else __import__("tensorrt")
    except (ImportError, OSError) as error:
        raise MRCError(f"{flavour} cannot be imported ({error}); pip install 'mrc-edit[{EXTRAS[flavour]}]'") from None


def load_rtx() -> ModuleType:
    import onnxruntime_ep_nv_tensorrt_rtx as libraries  # its import makes the .so.1 links

    for name in RTX_LIBRARIES:
        ctypes.CDLL(str(Path(libraries.__file__).parent / name), ctypes.RTLD_GLOBAL)
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings


class Words:
    """What TensorRT complained of since it was last asked."""

    def __init__(self, trt: Any) -> None:
        lines: list[str] = []
        self.lines = lines

        class Logger(trt.ILogger):  # type: ignore[misc]  # the base is one of two modules'
            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    lines.append(" ".join(message.split()))
                    del lines[:-KEPT]

        self.logger = Logger()

    def __call__(self) -> str:
        """Its lines as one, or that there are none; they are forgotten."""
        said = " | ".join(self.lines) or "TensorRT said nothing"
        self.lines.clear()
        return said


@cache
def words(trt: Any) -> Words:
    """Those of a flavour's module: TensorRT takes one logger a process, and ignores all later ones."""
    return Words(trt)
