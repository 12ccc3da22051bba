"""What torch.compile gives: to the eager U-Net, as a user would, and to our step graph in three ways.

Each stage compiles at once, beside the stages that time nothing, and measures when its turn has come.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from mrc_edit.core.fidelity import relative_error
from mrc_edit.model import step as step_module
from mrc_edit.model.step import UNetStep

from .models import eager_engine, edit, measure_edits, torch_engine
from .report import Report
from .settings import DEVICE, DRY, SIZES, compiled, turn
from .timing import graph_time, kernel_times

MODE = os.environ.get("MRC_COMPILE", "default")
HOW = {"backend": "aot_eager"} if DRY else {"mode": MODE}
torch._dynamo.config.recompile_limit = 64  # blocks of one class and other shapes


def wait_for_turn(stage: str) -> None:
    compiled(stage).touch()
    while not turn(stage).exists():
        time.sleep(0.2)


def compile(report: Report, _: float) -> None:
    """The eager U-Net."""
    start = time.perf_counter()
    engine, repeat = eager_engine("bfloat16", HOW)
    edit(engine, SIZES[0], "latent", 2)
    report.put("eager U-Net: seconds until the first edit", time.perf_counter() - start)
    wait_for_turn("compile")
    measure_edits(report, f"compile:{MODE} bfloat16", engine, SIZES[:1])
    measure_graph(report, "eager U-Net compiled", repeat)


def compile_step(report: Report, _: float) -> None:
    """The whole step without our kernels."""
    measure_step(report, "compile_step", lambda step: torch.compile(UNetStep(step.unet), dynamic=False, **HOW))


def compile_kernels(report: Report, _: float) -> None:
    """The whole step with our kernels in it."""
    measure_step(report, "compile_kernels", lambda step: torch.compile(step, dynamic=False, **HOW))


def compile_blocks(report: Report, _: float) -> None:
    """Every ResNet and transformer by itself, attention by cuDNN: blocks of the same shapes compile once."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)

    def blocks(step: UNetStep) -> Callable:
        def whole(block, hidden: Tensor, keys_values: list[Tensor], branch: Tensor | None) -> Tensor:
            return transformer(block, hidden, iter(keys_values), branch)

        def ours(block, hidden: Tensor, keys_values: Iterator[Tensor], branch: Tensor | None = None) -> Tensor:
            return compiled_whole(
                block, hidden, [next(keys_values) for _ in block.transformer_blocks for _ in "kv"], branch
            )

        transformer = step_module.transformer
        compiled_whole = torch.compile(whole, dynamic=False, **HOW)
        step_module.transformer = ours
        plain = UNetStep(step.unet)
        plain.resnet = torch.compile(plain.resnet, dynamic=False, **HOW)
        return plain

    measure_step(report, "compile_blocks", blocks)


def measure_step(report: Report, stage: str, make: Callable[[UNetStep], Callable]) -> None:
    step, inputs = step_inputs()
    with torch.inference_mode():
        expected = step(**inputs)[0].cpu().numpy()
        start = time.perf_counter()
        call = make(step)
        output = call(**inputs)[0].cpu().numpy()
        report.put(f"{stage}: seconds until the first step", time.perf_counter() - start)
    report.put(f"{stage}: distance from the step with kernels", relative_error(output, expected))
    wait_for_turn(stage)
    measure_graph(report, stage, partial(call, **inputs))


def step_inputs() -> tuple[UNetStep, dict[str, Tensor]]:
    """The step graph of the torch backend in bfloat16, and the inputs of an edit's last step."""
    engine = torch_engine("bfloat16", True)
    step = getattr(engine.backend.graphs["unet"], "module", engine.backend.graphs["unet"])
    last: dict[str, Tensor] = {}
    hook = step.register_forward_pre_hook(
        lambda module, arguments, keywords: last.update({name: value.clone() for name, value in keywords.items()}),
        with_kwargs=True,
    )
    edit(engine, SIZES[0], "latent", 2)
    hook.remove()
    return step, last


def measure_graph(report: Report, name: str, call: Callable[[], object]) -> None:
    if DEVICE == "cpu":
        return
    with torch.inference_mode():
        report.attempt(f"{name}, in a CUDA graph, ms", lambda: 1e3 * graph_time([call]))
        report.attempt(f"{name}: kernels", kernel_times, call)
        torch.backends.cudnn.benchmark = True
        report.attempt(f"{name} with cuDNN's search, in a CUDA graph, ms", lambda: 1e3 * graph_time([call]))
