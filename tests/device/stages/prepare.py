"""What must be there: the machine's own limits, the libraries, the checkpoint."""

import shutil
import subprocess
import sys
import time
from importlib.metadata import version

import torch

from mrc_edit.bench.replays import replay_seconds

from .report import Report
from .settings import CHECKPOINT, DRY, PACKAGE, ROOT, WORK


def env(report: Report, _: float) -> None:
    """Versions, and what the card can do: copy bandwidth, large matrix products, the gap between kernels."""
    report.put("python", sys.version.split()[0])
    for name in ("torch", "triton", "diffusers", "transformers", "tokenizers", "numpy", "safetensors", "accelerate"):
        report.attempt(name, version, name)
    if DRY:
        return
    print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout)
    card = torch.cuda.get_device_properties(0)
    report.put(
        "gpu",
        {
            "name": card.name,
            "sm": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "memory_GB": card.total_memory / 1e9,
            "L2_MB": card.L2_cache_size / 1e6,
            "cudnn": torch.backends.cudnn.version(),
        },
    )
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    report.put("copy_TB_s", 2 * source.numel() / replay_seconds([lambda: target.copy_(source)], 4) / 1e12)
    for dtype, repeat, rounds in ((torch.bfloat16, 4, 15), (torch.float16, 4, 15), (torch.float32, 1, 3)):
        report.put(f"matmul_TFLOP_s_{dtype}", matmul_rate(dtype, repeat, rounds))
    small = torch.zeros(32, device="cuda")
    report.put("gap_us_in_a_graph", 1e6 * replay_seconds([lambda: small.add_(1)], 500))


def matmul_rate(dtype: torch.dtype, repeat: int, rounds: int) -> float:
    """TFLOP/s of a large product."""
    x, y = torch.randn(2, 8192, 8192, device="cuda", dtype=dtype)
    return 2 * 8192**3 / replay_seconds([lambda: x @ y], repeat, rounds) / 1e12


def build(report: Report, _: float) -> None:
    """The native kernels; on a card the CUDA pack too, which stays apart until a stage wants it."""
    folder, kernels = WORK / "build", PACKAGE / "mrc_edit" / "kernels"
    options = ["-DMRC_PACK=OFF"]
    if not DRY:
        types = "float16;bfloat16;float32"
        options = ["-DMRC_PACK=ON", f"-DMRC_PACK_PYTHON={sys.executable}", f"-DMRC_PACK_TYPES={types}"]
        options.append("-DMRC_PACK_ARCHITECTURES={}{}".format(*torch.cuda.get_device_capability()))
    start = time.perf_counter()
    run("cmake", "-S", ROOT, "-B", folder, *options)
    run("cmake", "--build", folder, "-j16", "--target", "mrc_kernels")
    shutil.copy(folder / "libmrc_kernels.so", kernels)
    (kernels / "include").mkdir(exist_ok=True)
    for name in ("mrc_kernels.h", "mrc_cuda.h"):
        shutil.copy(kernels / "csrc" / name, kernels / "include")
    report.put("native_s", time.perf_counter() - start)
    if not DRY:
        run("cmake", "--build", folder, "-j16")
        shutil.copy(folder / "libmrc_cuda.so", WORK)
        report.put("pack_s", time.perf_counter() - start)


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def checkpoint(report: Report, _: float) -> None:
    from mrc_edit.model import save_checkpoint

    from .models import random_checkpoint

    start = time.perf_counter()
    save_checkpoint(random_checkpoint(), CHECKPOINT)
    report.put("made_s", time.perf_counter() - start)
    report.put("GB", sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) / 1e9)
