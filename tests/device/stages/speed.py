"""Whole edits by backend and precision."""

import os
import shutil
import time
from collections.abc import Callable

import torch

from mrc_edit.engine import Engine
from mrc_edit.kernels import pack
from mrc_edit.model.step import UNetStep

from .models import eager_engine, edit, measure_edits, torch_engine
from .report import Report
from .settings import COMPILED, DEVICE, DRY, GO, PACKAGE, SIZES, WORK
from .timing import event_time, graph_time, kernel_times


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
    recordings = getattr(engine.backend.graphs["unet"], "recorded", {})
    for graph, inputs, _ in recordings.values():
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


def compile(report: Report, _: float) -> None:
    """What a user would take instead: torch.compile of the eager U-Net; and of our step graph.

    Compiles at once and measures when the file `GO` is there, so that it can compile while tests run.
    """
    mode = os.environ.get("MRC_COMPILE", "default")
    start = time.perf_counter()
    engine, repeat = eager_engine("bfloat16", mode)
    edit(engine, SIZES[0], "latent", 2)
    report.put("eager U-Net: seconds until the first edit", time.perf_counter() - start)
    graphs = compiled_steps(report, mode) if DEVICE == "cuda" else {}
    COMPILED.touch()
    while not GO.exists():
        time.sleep(0.2)
    measure_edits(report, f"compile:{mode} bfloat16", engine, SIZES[:1])
    if DEVICE == "cuda":
        with torch.inference_mode():
            for name, call in {"eager U-Net compiled": repeat, **graphs}.items():
                report.attempt(f"{name}, in a CUDA graph, ms", lambda call=call: 1e3 * graph_time([call]))
            compiled = graphs["our step graph compiled"]
            report.attempt("our step graph compiled: kernels", kernel_times, compiled)


def compiled_steps(report: Report, mode: str) -> dict[str, Callable]:
    """Our step graph compiled without the kernels, and as it is, on the inputs of an edit's last step."""
    start = time.perf_counter()
    engine: Engine = torch_engine("bfloat16", True)
    step = engine.backend.graphs["unet"]
    edit(engine, SIZES[0], "latent", 2)
    inputs = next(iter(step.recorded.values()))[1]
    compiled = torch.compile(UNetStep(step.module.unet, fused=False), dynamic=False, mode=mode)
    with torch.inference_mode():
        compiled(**inputs)
    report.put("our step graph: seconds until the first step", time.perf_counter() - start)
    return {
        "our step graph compiled": lambda: compiled(**inputs),
        "our step graph with kernels": lambda: step.module(**inputs),
    }
