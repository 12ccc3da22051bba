"""What a module launches on a GPU, as a CUDA graph: recorded once for each set of shapes, then replayed in one call."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock

import torch
from torch import Tensor

from ...kernels import ops
from ..graphs import FEATURE_BIAS, FOLDED
from .recent import Recent

RECORDINGS = 8  # of each module
CAST = ("time_bias", "text_kv", "deep", *FOLDED, *FEATURE_BIAS)  # inputs that a step computes with in its own precision
CHANGING = ("sample",)  # inputs whose content changes in place

Module = Callable[..., tuple[Tensor, ...]]
Replay = Callable[[], None]


class DeviceMemory:
    """What the recordings of one engine share: a pool for their intermediate results, and a lock.

    Recordings overwrite each other's intermediate results. So one replays at a time, and results are copied out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lock = RLock()
        self.pool = torch.cuda.graph_pool_handle()
        self.side = torch.cuda.Stream(device)

    def capture(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Replay, tuple[Tensor, ...]]:
        """Record what `function` launches: a function that launches it again, and the outputs that it writes."""
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):  # libraries choose algorithms and kernels compile before the recording
            for _ in range(3):
                function()
        torch.cuda.current_stream(self.device).wait_stream(self.side)
        torch.cuda.empty_cache()  # what the side stream's results took, nobody else could use
        graph = torch.cuda.CUDAGraph()
        # other threads of the process may go on using the GPU
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = function()
        return graph.replay, outputs


@dataclass
class Recording:
    """Attributes:
    buffers: inputs as the launches read them.
    sources: the tensors that the buffers were filled from.
    outputs: what the launches write.
    """

    replay: Replay
    buffers: dict[str, Tensor]
    outputs: tuple[Tensor, ...]
    sources: dict[str, Tensor] = field(default_factory=dict)

    def fill(self, inputs: dict[str, Tensor]) -> None:
        """Copy the inputs that are not there yet: those of an edit stay for all its steps."""
        for name, tensor in inputs.items():
            if name in CHANGING or self.sources.get(name) is not tensor:
                self.buffers[name].copy_(tensor)
                self.sources[name] = tensor


class Recorded:
    """A module of `model.graphs`, called by recordings of its launches, of which the last `RECORDINGS` are kept."""

    def __init__(self, module: Module, dtype: torch.dtype, memory: DeviceMemory) -> None:
        self.module, self.dtype, self.memory = module, dtype, memory
        self.recordings: Recent[Recording] = Recent(RECORDINGS)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs for these inputs, in memory of their own. Only `CHANGING` may change in place."""
        key = (ops.forced, *((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items()))
        with self.memory.lock:
            recording = self.recordings.get(key, lambda: self.record(inputs))
            recording.fill(inputs)
            recording.replay()
            return tuple(output.clone() for output in recording.outputs)

    def record(self, inputs: dict[str, Tensor]) -> Recording:
        buffers = {name: tensor.to(self.dtype if name in CAST else None, copy=True) for name, tensor in inputs.items()}
        replay, outputs = self.memory.capture(lambda: self.module(**buffers))
        return Recording(replay, buffers, outputs)
