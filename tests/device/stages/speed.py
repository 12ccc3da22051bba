"""Whole edits by backend and precision."""

import shutil

import torch

from mrc_edit.kernels import pack

from .models import eager_engine, measure_edits, torch_engine
from .report import Report
from .settings import DEVICE, DRY, PACKAGE, WORK
from .timing import event_time, kernel_times


def eager(report: Report, _: float) -> None:
    for precision in ("bfloat16",) if DRY else ("bfloat16", "float16"):
        engine, repeat = eager_engine(precision)
        measure_edits(report, f"eager {precision}", engine)
        if DEVICE == "cuda":
            with torch.inference_mode():
                report.attempt(f"eager {precision} step", kernel_times, repeat)


def torch_backend(report: Report, precision: str) -> None:
    engine = torch_engine(precision, False)
    measure_edits(report, f"torch {precision}", engine)
    recordings = [] if DEVICE == "cpu" else list(engine.backend.graphs["unet"].recorded.values.values())
    for graph, inputs, _ in recordings:
        side = inputs["sample"].shape[-1] * 8
        report.attempt(f"torch {precision} step {side}", kernel_times, graph.replay)
        report.attempt(f"torch {precision} replay_ms {side}", lambda graph=graph: 1e3 * event_time(graph.replay, 30))
    del engine, recordings
    measure_edits(report, f"torch {precision} loop", torch_engine(precision, True))


def torch_bfloat16(report: Report, _: float) -> None:
    torch_backend(report, "bfloat16")


def torch_float16(report: Report, _: float) -> None:
    torch_backend(report, "float16")


def torch_float32(report: Report, _: float) -> None:
    torch_backend(report, "float32")


def torch_packed(report: Report, _: float) -> None:
    """The same with the kernels compiled ahead of time."""
    library = PACKAGE / "mrc_edit" / "kernels" / "libmrc_cuda.so"
    shutil.copy(WORK / "libmrc_cuda.so", library)
    try:
        report.put("problem", pack.problem())
        measure_edits(report, "torch float16 packed", torch_engine("float16", True), rounds=3)
    finally:
        library.unlink()
