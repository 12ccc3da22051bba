"""PyTorch made fast: the step graph over the kernels, channels last, on CUDA captured as a CUDA graph."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ...core.errors import MRCError
from ...kernels import ops
from ...model import Checkpoint, load_checkpoint
from ...model.graphs import Conditioner, TextEncoder, UNetShallow, UNetStep, VaeDecoder, VaeEncoder
from ..contract import FOLDED
from .eager import geometry
from .graphs import GraphBackend

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(folder: Path, precision: str | None = None, loop: bool = False) -> "TorchBackend":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision not in (None, *PRECISIONS):
        raise MRCError(f"precision is {precision!r}; the torch backend has {', '.join(PRECISIONS)}")
    if (precision, device) == ("float16", "cpu"):
        raise MRCError("precision is 'float16', which PyTorch computes slowly on a CPU; use bfloat16 or float32")
    return TorchBackend(load_checkpoint(folder), device, precision or "float32", loop)


class TorchBackend(GraphBackend):
    """One module a graph on one device; the conditioner, which runs once an edit, in float32.

    With `loop` latents stay on the device from the first step to the last.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, precision: str, loop: bool = False) -> None:
        self.unet_loop = self.steps if loop else None
        self.precision = precision
        self.geometry = geometry(checkpoint)
        self.scheduler = dict(checkpoint.scheduler.config)
        self.tokenizer: Tokenizer = checkpoint.tokenizer.backend_tokenizer
        self.device = torch.device(device)
        for module in (checkpoint.unet, checkpoint.vae):
            module.to(self.device, memory_format=torch.channels_last)
        checkpoint.text_encoder.to(self.device)
        conditioner = Conditioner(checkpoint.unet)
        if precision != "float32":
            conditioner = copy.deepcopy(conditioner)  # before its weights are rounded
            for module in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder):
                nn.Module.to(module, PRECISIONS[precision])  # not module.to: see model.checkpoint.fill
        steps = (UNetStep(checkpoint.unet, fused=True), UNetShallow(checkpoint.unet, fused=True))
        step, shallow = map(Captured, steps) if self.device.type == "cuda" else steps
        self.graphs: dict[str, nn.Module] = {
            "text_encoder": TextEncoder(checkpoint.text_encoder),
            "vae_encoder": VaeEncoder(checkpoint.vae),
            "vae_decoder": VaeDecoder(checkpoint.vae),
            "conditioner": conditioner,
            "unet": step,
            "unet_shallow": shallow,
        }

    def hold(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    @torch.inference_mode()
    def run(self, role: str, kept: dict | None = None, **feeds: Any) -> list[Any]:
        outputs = self.graphs[role](*(v if isinstance(v, Tensor) else self.hold(v) for v in feeds.values()))
        deep = 1 if role == "unet" else len(outputs)  # features stay where they are
        return [output.cpu().contiguous().numpy() for output in outputs[:deep]] + list(outputs[deep:])

    @torch.inference_mode()
    def steps(self, *, conditions: dict[str, Any], **feeds: np.ndarray) -> np.ndarray:
        held = {name: self.hold(array) for name, array in feeds.items()}
        latents, source, item, table = (held[name] for name in ("latents", "source", "item", "table"))
        constant = [conditions[name] for name in ("text_kv", *FOLDED) if name in conditions]
        denoised = torch.zeros_like(latents)
        sample = torch.cat([latents[item] * table[0, 0], source], dim=1)
        for step, fresh in enumerate(held["fresh"]):
            bias = conditions["time_bias"][step]
            noise = self.graphs["unet"](sample, held["branch"], held["guidance"], bias, *constant)[0]
            next_scale = table[min(step + 1, len(table) - 1), :1]
            ops.sampler_step(
                noise, latents, denoised, fresh, table[step, 1:5], table[step, 5:], next_scale, item, sample
            )
        return latents.cpu().numpy()


class Captured(nn.Module):
    """A module whose launches are recorded once for each set of shapes and then replayed at once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.recorded: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]] = {}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self.recorded:
            self.recorded[shapes] = self.record(inputs)
        graph, kept, outputs = self.recorded[shapes]
        for ours, given in zip(kept, inputs, strict=True):
            ours.copy_(given)
        graph.replay()
        return outputs

    def record(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]:
        kept = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose algorithms and Triton compiles before the recording
            for _ in range(3):
                self.module(*kept)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.module(*kept)
        return graph, kept, outputs
