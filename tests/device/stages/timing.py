"""Times of a function, and the kernels it launches."""

from collections.abc import Callable
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from mrc_edit.bench.replays import event_seconds

from .settings import DEVICE


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def event_time(function: Callable, rounds: int) -> float:
    """Median seconds of a call on the card."""
    return median(event_seconds(function) for _ in range(rounds))


KINDS = {  # the first that has a word of the kernel's name
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "group norm": ("group_norm", "groupnorm", "rowwisemoments", "statistics_kernel", "computefused", "gammabeta"),
    "layer norm": ("layer_norm", "layernorm"),
    "reward block": ("reward_block",),
    "sampler step": ("sampler_step",),
    "layout": ("nchwtonhwc", "nhwctonchw", "tensortransform", "transpose"),
    "convolution": ("conv", "fprop", "implicit", "xmma_fprop", "cudnn"),
    "matrix product": ("gemm", "cublas", "nvjet", "cutlass", "splitk"),
    "copy": ("memcpy", "copy", "cat", "memset"),
    "elementwise": ("elementwise", "vectorized", "triton_poi", "triton_per", "triton_red", "index", "reduce"),
}


def kernel_times(function: Callable) -> dict:
    """Kernels that one call runs on the GPU: their number, milliseconds by kind, and the longest by name."""
    function()
    synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
        synchronize()
    times: dict[str, list[float]] = {}  # microseconds
    for event in profiler.events():
        if str(getattr(event, "device_type", "")).endswith("CUDA"):
            times.setdefault(event.name, []).append(event.device_time)
    total = sum(map(sum, times.values()))
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))[:40]
    kinds: dict[str, float] = {}
    for name, values in times.items():
        kind = next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), "other")
        kinds[kind] = kinds.get(kind, 0.0) + sum(values)
    return {
        "launches": sum(map(len, times.values())),
        "busy_ms": total / 1e3,
        "kinds_ms": {kind: round(us / 1e3, 4) for kind, us in sorted(kinds.items(), key=lambda item: -item[1])},
        "longest_us": [[name[:110], len(t), round(sum(t), 1), round(100 * sum(t) / total, 1)] for name, t in longest],
    }
