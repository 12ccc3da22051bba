"""PyTorch made fast: the step graph over the kernels, channels last, on CUDA recorded as a CUDA graph."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import MRCError
from ...core.precision import PRECISIONS
from ...kernels import ops
from ...model import Checkpoint, load_checkpoint
from ...model.graphs import graph_module
from ...model.scheduler import scheduler_config
from ..failures import computing
from ..graphs import EACH_STEP, GRAPHS
from ..loop import OnStep, check_latents, start, step_noise
from ..plan import Plan
from ..sampling import SamplerTable, clipping
from ..text import whole_texts
from .base import DeviceLoop, GuidedUNet
from .eager import geometry
from .graphs import Feeds, GraphBackend, GraphUNet, Runner
from .recent import Recent

RECORDINGS = 4
Recording = tuple[torch.cuda.CUDAGraph, dict[str, Tensor], tuple[Tensor, ...]]  # graph, inputs, outputs


def load(folder: Path, precision: str | None = None, loop: bool = False) -> "TorchBackend":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision not in (None, *PRECISIONS):
        raise MRCError(f"precision is {precision!r}; the torch backend has {', '.join(PRECISIONS)}")
    if (precision, device) == ("float16", "cpu"):
        raise MRCError("precision is 'float16', which PyTorch computes slowly on a CPU; use bfloat16 or float32")
    return TorchBackend(load_checkpoint(folder), device, precision or "float32", loop)


class TorchBackend(GraphBackend[Tensor]):
    """One module a graph on one device; graphs that may not be half stay in float32.

    With `loop` the latents stay on the device from the first step to the last.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, precision: str, loop: bool = False) -> None:
        self.precision = precision
        self.geometry, self.defaults = geometry(checkpoint), checkpoint.defaults
        self.scheduler = scheduler_config(checkpoint.scheduler)
        self.tokenizer = whole_texts(checkpoint.tokenizer.backend_tokenizer)
        self.device = torch.device(device)
        self.device_loop = TorchLoop(self.device) if loop else None
        for module in (checkpoint.unet, checkpoint.vae):
            nn.Module.to(module, self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        checkpoint.text_encoder.to(self.device)
        parts = {name: getattr(checkpoint, graph.part) for name, graph in GRAPHS.items()}
        self.graphs: dict[str, nn.Module] = {}
        if precision != "float32":  # copied before their weights are rounded
            self.graphs = {
                name: copy.deepcopy(graph_module(graph.module, parts[name]))
                for name, graph in GRAPHS.items()
                if not graph.half
            }
            for part in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder):
                nn.Module.to(part, getattr(torch, precision))  # not module.to: see model.checkpoint.fill
        for name in GRAPHS.keys() - self.graphs.keys():
            module = graph_module(GRAPHS[name].module, parts[name], fused=True)
            self.graphs[name] = Captured(module) if name in EACH_STEP and self.device.type == "cuda" else module

    def to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def to_numpy(self, value: Tensor) -> np.ndarray:
        return value.cpu().contiguous().numpy()

    def runner(self, graph: str) -> Runner:
        module, names = self.graphs[graph], GRAPHS[graph].outputs

        @torch.inference_mode()
        def run(feeds: Feeds) -> Feeds:
            return dict(zip(names, module(**feeds), strict=False))  # a plain model has no reward tensors

        return run


class TorchLoop(DeviceLoop):
    """The denoising loop on the device; `kernels.ops.sampler_step` advances the latents in place."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @torch.inference_mode()
    def denoise(
        self,
        unet: GuidedUNet,
        plan: Plan,
        table: SamplerTable,
        source: np.ndarray,
        generators: list[np.random.RandomState],
        on_step: OnStep | None,
    ) -> np.ndarray:
        assert isinstance(unet, GraphUNet)
        to_device = unet.backend.to_device
        first, visible = start(plan, table, source, generators)
        latents, image, guidance = to_device(first), to_device(plan.image), to_device(plan.guidance)
        scale, coefficients, of_denoised = (
            to_device(values.astype(np.float32)) for values in (table.input_scale, table.coefficients, table.denoised)
        )
        denoised = torch.zeros_like(latents)
        sample = torch.cat([latents[image] * scale[0], to_device(visible)], dim=1)
        for step in range(len(table.timesteps)):
            with computing(f"unet at step {step + 1} of {len(table.timesteps)}"):
                noise = unet.run_full(unet.feeds(step, sample, guidance))["noise"].contiguous()
            drawn = step_noise(table, generators, source.shape)
            fresh = None if drawn is None else to_device(drawn)
            if table.clip is not None:
                fresh = clipping(table, step, noise, latents)
            next_scale = scale[min(step + 1, len(scale) - 1)].reshape(1)
            ops.sampler_step(
                noise, latents, denoised, fresh, coefficients[step], of_denoised[step], next_scale,
                image, sample,
            )  # fmt: skip
            replaced = on_step(step, latents.cpu().numpy()) if on_step else None
            if replaced is not None:
                latents.copy_(torch.from_numpy(check_latents(replaced, source.shape)))
                sample[:, : latents.shape[1]] = latents[image] * next_scale
        return latents.cpu().numpy()


class Captured(nn.Module):
    """A module whose launches are recorded for each set of shapes and then replayed at once.

    Each recording owns its activations: the last `RECORDINGS` are kept.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.recorded: Recent[Recording] = Recent(RECORDINGS)

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(tensor.shape for tensor in inputs.values())
        graph, buffers, outputs = self.recorded.get(shapes, lambda: self.record(inputs))
        for name, tensor in inputs.items():
            buffers[name].copy_(tensor)
        graph.replay()
        return outputs

    def record(self, inputs: dict[str, Tensor]) -> Recording:
        buffers = {name: tensor.clone() for name, tensor in inputs.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose algorithms and Triton compiles before the recording
            for _ in range(3):
                self.module(**buffers)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.module(**buffers)
        return graph, buffers, outputs
