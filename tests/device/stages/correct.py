"""What must be right: the eager reference, the kernels, the tests, recorded graphs."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mrc_edit.bench.operators import tensor_error, wide
from mrc_edit.bench.workload import photograph
from mrc_edit.core.fidelity import relative_error
from mrc_edit.engine import Engine
from mrc_edit.kernels import ops
from mrc_edit.kernels.group_norm_silu.reference import group_norm_silu
from mrc_edit.kernels.reward_block.reference import RewardWeights, reward_block

from .models import eager_engine, edit, measure_edit, torch_engine
from .report import Report
from .settings import CHECKPOINT, DEVICE, DRY, REFERENCE, REPEATS, ROOT, SIZES, TEXT, WORK

SETTINGS = {"num_inference_steps": 8, "seed": 3, "resolution": 0, "output_type": "latent", "scheduler": "euler"}


def truth(report: Report, _: float) -> None:
    """Eager float32 on the GPU without TF32 is the reference; two steps of it on the CPU check that."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    engine, _ = eager_engine("float32")
    for size in SIZES:
        row, latents, image = measure_edit(engine, size, 1)
        report.put(f"eager float32 {size}", row)
        part = REFERENCE / f"{size}.part.npz"
        np.savez(part, latents=latents, image=image)
        part.rename(REFERENCE / f"{size}.npz")

    def against_cpu() -> float:
        engines = (engine, Engine.from_pretrained(CHECKPOINT, "eager", device="cpu"))
        return relative_error(*(edit(one, SIZES[-1], "latent", 2).images for one in engines))

    report.attempt("GPU against CPU, float32, 2 steps", against_cpu)


def touch(report: Report, _: float) -> None:
    """Every kernel once at awkward sizes, against float64; `sanitizer` runs this too."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for name, case in kernel_cases(dtype):
            report.attempt(f"{dtype} {name}", case)


def kernel_cases(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], dict]]]:
    for channels, side in ((320, 9), (32, 5), *([(320, 64)] if not DRY and REPEATS > 9 else [])):
        yield f"reward_block {channels} {side}×{side}", partial(check_reward_block, dtype, channels, side)
    for channels, height, width, offset, silu in (
        (320, 7, 9, True, True),
        (2560, 3, 5, False, True),
        (640, 7, 9, False, False),
        (320, 33, 40, True, True),  # large: three kernels
    ):
        name = f"group_norm_silu {channels} {height}×{width}{'' if silu else ' without SiLU'}"
        yield name, partial(check_group_norm, dtype, channels, height, width, offset, silu)


def normal(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def check_reward_block(dtype: torch.dtype, channels: int, side: int) -> dict:
    """Error, and whether the result repeats: racecheck does not see what a kernel passes on through global memory."""
    draw = partial(normal, dtype)
    matrices = ("proj_in", "inner", "outer", "proj_out")
    weights = [
        draw(channels, channels) / channels**0.5 if name in matrices else 0.3 * draw(channels) + ("bias" not in name)
        for name in RewardWeights._fields
    ]
    hidden = (3 * draw(2, channels, side, side) + 1).contiguous(memory_format=torch.channels_last)
    folded = draw(2, 8, channels) / channels**0.5, draw(2, 8, 1), draw(2, channels, 1), draw(2, channels, 8)
    arguments = [hidden, *folded, weights, 32]
    output = ops.reward_block(*arguments)
    same = all(torch.equal(output, ops.reward_block(*arguments)) for _ in range(REPEATS))
    return {"error": tensor_error(output, reward_block(*wide(arguments))), "the same every time": same}


def check_group_norm(dtype: torch.dtype, channels: int, height: int, width: int, offset: bool, silu: bool) -> dict:
    draw = partial(normal, dtype)
    hidden = draw(2, channels, height, width).contiguous(memory_format=torch.channels_last)
    arguments = [hidden, draw(channels), draw(channels), 32, 1e-5, draw(2, channels) if offset else None, silu]
    return {"error": tensor_error(ops.group_norm_silu(*arguments), group_norm_silu(*wide(arguments)))}


def tests(report: Report, limit: float) -> None:
    """The tests marked `gpu`, and the torch backend's others, which run on the GPU where there is one."""
    deadline = time.perf_counter() + limit - 3
    for name, options in (
        ("marked gpu", ["-m", "gpu", "tests/kernels/test_triton.py", "tests/engine/test_torch_backend.py"]),
        ("unmarked, on the GPU", ["-m", "not gpu and not slow", "tests/engine/test_torch_backend.py"]),
    ):
        report.attempt(name, run_tests, options, deadline - time.perf_counter())


def run_tests(options: list[str], limit: float) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--tb=short", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    print(done.stdout[-12_000:], done.stderr[-1000:])
    if done.returncode:
        wrong = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        raise RuntimeError(f"exit status {done.returncode}: {wrong}")
    return done.stdout.strip().splitlines()[-1]


def correct(report: Report, _: float) -> None:
    """What only a recorded graph can get wrong: new inputs of the same shapes, two groups of them, memory."""
    for tier, guidance in (("fast", (7.5, 1.5)), ("turbo", (7.5, 1.5)), ("turbo", (1.5, 1.0))):
        report.attempt(f"recorded against plain, {tier} {guidance}", compare_recorded, tier, guidance)
    if not DRY:
        report.attempt("memory by number of sizes so far (GB reserved)", memory_by_size)
    report.attempt("reference_kernels() after a recording has an effect", switch_kernels)


def compare_recorded(tier: str, guidance: tuple[float, float]) -> float:
    latents = []
    for recorded in (True, False):
        engine = torch_engine("float32", tier=tier)
        if not recorded:
            engine.backend.calls = dict(engine.backend.modules)
        scales = {"guidance_scale": guidance[0], "image_guidance_scale": guidance[1]}
        latents.append(engine.edit(photograph(SIZES[-1]), TEXT, **scales, **SETTINGS).images)
    return relative_error(*latents)


def memory_by_size() -> list:
    engine, rows = torch_engine("bfloat16"), []
    settings = {"num_inference_steps": 2, "seed": 0, "resolution": 0, "output_type": "latent"}
    for width, height in (*((256 + 64 * i, 256) for i in range(5)), *((512, 320 + 64 * i) for i in range(4))):
        engine.edit(photograph(512)[:height, :width], TEXT, **settings)
        rows.append([width, height, round(torch.cuda.memory_reserved() / 1e9, 3)])
    return rows


def switch_kernels() -> bool:
    engine = torch_engine("float32")
    latents = engine.edit(photograph(SIZES[-1]), TEXT, **SETTINGS).images
    with ops.reference_kernels():
        return not bool(np.array_equal(latents, engine.edit(photograph(SIZES[-1]), TEXT, **SETTINGS).images))


def sanitizer(report: Report, limit: float) -> None:
    """`touch` under compute-sanitizer."""
    deadline = time.perf_counter() + limit - 5
    if shutil.which("compute-sanitizer") is None:
        report.put("compute-sanitizer", "is not on this machine")
        return report.fail("compute-sanitizer")
    text = subprocess.run(["compute-sanitizer", "--help"], capture_output=True, text=True, check=False).stdout
    own = next(([option, "kns=_kernel"] for option in ("--kernel-name", "--filter") if option in text), [])
    for tool, more in (("memcheck", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}), ("racecheck", {}), ("synccheck", {})):
        left = deadline - time.perf_counter()
        if left < 20:
            report.put(tool, "no time left")
            continue
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *own, sys.executable]
        command += [str(Path(__file__).parents[1] / "check.py"), "--stage", "touch"]
        command += ["--results", str(WORK / tool)]
        report.attempt(tool, run_tool, command, left, os.environ | more | {"MRC_REPEATS": "2"})


def run_tool(command: list[str], left: float, environment: dict[str, str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left, env=environment)
    print(done.stdout[-3000:])
    lines = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line or "Error" in line][-4:]
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {lines}")
    return {"rc": done.returncode, "last": lines}
