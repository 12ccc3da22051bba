"""Whole edits by backend and precision."""

import shutil

import torch

from mrc_edit.engine import Engine
from mrc_edit.kernels import pack

from .models import eager_engine, measure_edits, torch_engine
from .report import Report
from .settings import DEVICE, PACKAGE, SIZES, WORK
from .timing import event_time, kernel_times


def eager(report: Report, _: float) -> None:
    engine, repeat = eager_engine("bfloat16")
    measure_edits(report, "eager bfloat16", engine)
    if DEVICE == "cuda":
        with torch.inference_mode():
            report.attempt("eager bfloat16 step", kernel_times, repeat)


def torch_backend(report: Report, precision: str, **options: object) -> None:
    engine = torch_engine(precision, **options)
    name = f"torch {precision}"
    measure_edits(report, name, engine)
    measure_replays(report, name, engine)
    if DEVICE == "cuda":
        engine.backend.device_loop = None
        measure_edits(report, f"{name}, loop on the host", engine, SIZES[:1], rounds=2)


def measure_replays(report: Report, name: str, engine: Engine) -> None:
    """Time and kernels of a recorded step."""
    if DEVICE == "cpu":
        return
    for recording in list(engine.backend.calls["unet"].recordings.values.values()):
        side = recording.buffers["sample"].shape[-1] * 8
        report.attempt(f"{name} replay_ms {side}", lambda replay=recording.replay: 1e3 * event_time(replay, 30))
        report.attempt(f"{name} step {side}", kernel_times, recording.replay)


def torch_bfloat16(report: Report, _: float) -> None:
    torch_backend(report, "bfloat16")


def torch_float16(report: Report, _: float) -> None:
    torch_backend(report, "float16")


def torch_float32(report: Report, _: float) -> None:
    torch_backend(report, "float32")


def torch_tf32(report: Report, _: float) -> None:
    torch_backend(report, "float32" if DEVICE == "cpu" else "tf32")


def torch_packed(report: Report, _: float) -> None:
    """The same with the kernels compiled ahead of time."""
    library = PACKAGE / "mrc_edit" / "kernels" / "libmrc_cuda.so"
    shutil.copy(WORK / "libmrc_cuda.so", library)
    try:
        report.put("problem", pack.problem())
        measure_edits(report, "torch float16 packed", torch_engine("float16"), rounds=3)
    finally:
        library.unlink()
