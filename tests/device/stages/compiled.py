"""What torch.compile gives: to the eager U-Net, to the `torch` backend, and to its step with the kernels in it."""

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mrc_edit.bench.replays import replay_seconds
from mrc_edit.core.fidelity import relative_error
from mrc_edit.model.step import UNetStep

from .models import eager_engine, edit, measure_edits, torch_engine
from .report import Report
from .settings import DEVICE, DRY, SIZES
from .speed import measure_replays
from .timing import kernel_times

HOW = {"backend": "aot_eager"} if DRY else {"mode": "default"}


def compile(report: Report, _: float) -> None:
    """The eager U-Net."""
    start = time.perf_counter()
    engine, repeat = eager_engine("bfloat16", HOW)
    edit(engine, SIZES[0], "latent", 2)
    report.put("eager U-Net: seconds until the first edit", time.perf_counter() - start)
    measure_edits(report, "compile bfloat16", engine, SIZES[:1])
    measure_graph(report, "eager U-Net compiled", repeat)


def torch_compiled(report: Report, _: float) -> None:
    """The `torch` backend with its option."""
    start = time.perf_counter()
    engine = torch_engine("bfloat16", **({} if DEVICE == "cpu" else {"compile": True}))
    edit(engine, SIZES[0], "latent", 2)
    report.put("torch compiled: seconds until the first edit", time.perf_counter() - start)
    measure_edits(report, "torch bfloat16 compiled", engine, SIZES[:1])
    measure_replays(report, "torch bfloat16 compiled", engine)


def compile_kernels(report: Report, _: float) -> None:
    """The whole step with our kernels in it."""
    measure_step(report, "compile_kernels", lambda step: torch.compile(step, dynamic=False, fullgraph=True, **HOW))


def measure_step(report: Report, stage: str, make: Callable[[UNetStep], Callable]) -> None:
    step, inputs = step_inputs()
    with torch.inference_mode():
        plain = step(**inputs)[0].cpu().numpy()
        wide = UNetStep(copy.deepcopy(step.unet).float())(**inputs)[0].cpu().numpy()
        start = time.perf_counter()
        call = make(step)
        output = call(**inputs)[0].cpu().numpy()
        report.put(f"{stage}: seconds until the first step", time.perf_counter() - start)
    for name, noise in (("", output), (" uncompiled with kernels", plain)):
        report.put(f"{stage}{name}: distance from float32", relative_error(noise, wide))
    measure_graph(report, stage, partial(call, **inputs))


def step_inputs() -> tuple[UNetStep, dict[str, Tensor]]:
    """The step graph of the torch backend in bfloat16, and the inputs of an edit's last step."""
    engine = torch_engine("bfloat16")
    step = engine.backend.modules["unet"]
    last: dict[str, Tensor] = {}
    hook = step.register_forward_pre_hook(
        lambda module, arguments, keywords: last.update(keywords), with_kwargs=True
    )  # on a card the recording's own buffers, which keep their content
    edit(engine, SIZES[0], "latent", 2)
    hook.remove()
    return step, {name: value.clone() for name, value in last.items()}


def measure_graph(report: Report, name: str, call: Callable[[], object]) -> None:
    if DEVICE == "cpu":
        return
    with torch.inference_mode():
        report.attempt(f"{name}, in a CUDA graph, ms", lambda: 1e3 * replay_seconds([call]))
        report.attempt(f"{name}: kernels", kernel_times, call)
        torch.backends.cudnn.benchmark = True
        report.attempt(f"{name} with cuDNN's search, in a CUDA graph, ms", lambda: 1e3 * replay_seconds([call]))
