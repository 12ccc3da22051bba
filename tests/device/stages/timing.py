"""Times of a function, and the kernels it launches."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from .settings import DEVICE


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def wall_time(function: Callable, rounds: int = 5, warmup: int = 2) -> float:
    """Median seconds of a call, the device idle before and after."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - start)
    return median(times)


def event_time(function: Callable, rounds: int) -> float:
    """Median seconds of a call between two events of the GPU."""
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def graph_time(functions: Sequence[Callable], repeat: int = 1, rounds: int = 15) -> float:
    """Median seconds of one call, from a CUDA graph of all `functions`, each `repeat` times: no gaps by the host.

    Several functions over different inputs keep the caches from holding them.
    """
    if DEVICE == "cpu":
        return wall_time(functions[0], 1, 0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for function in functions:
                function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeat):
            for function in functions:
                function()
    graph.replay()
    return event_time(graph.replay, rounds) / repeat / len(functions)


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
