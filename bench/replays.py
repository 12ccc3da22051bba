"""Times of what a GPU computes, without the host's: from replays of a CUDA graph."""

from collections.abc import Callable, Sequence
from statistics import median

import torch


def event_seconds(function: Callable[[], object]) -> float:
    """Seconds of one call on the GPU, between two of its events."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def recorded(functions: Sequence[Callable[[], object]], repeat: int = 1) -> Callable[[], None]:
    """A replay of all `functions`, each `repeat` times."""
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
    return graph.replay


def replay_seconds(functions: Sequence[Callable[[], object]], repeat: int = 1, rounds: int = 15) -> float:
    """Median seconds of one call.

    Several functions over different inputs keep the caches from holding them.
    """
    replay = recorded(functions, repeat)
    return median(event_seconds(replay) for _ in range(rounds)) / repeat / len(functions)
