"""PyTorch made fast: the step graph over the kernels, channels last, on CUDA captured as a CUDA graph."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ...model import Checkpoint, load_checkpoint
from ...model.graphs import Conditioner, TextEncoder, UNetStep, VaeDecoder, VaeEncoder
from .eager import geometry
from .graphs import GraphBackend


def load(folder: Path) -> "TorchBackend":
    return TorchBackend(load_checkpoint(folder), "cuda" if torch.cuda.is_available() else "cpu")


class TorchBackend(GraphBackend):
    """One module a graph, float32, on one device."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.geometry = geometry(checkpoint)
        self.scheduler = dict(checkpoint.scheduler.config)
        self.tokenizer: Tokenizer = checkpoint.tokenizer.backend_tokenizer
        self.device = torch.device(device)
        for module in (checkpoint.unet, checkpoint.vae):
            module.to(self.device, memory_format=torch.channels_last)
        checkpoint.text_encoder.to(self.device)
        step = UNetStep(checkpoint.unet, fused=True)
        self.graphs: dict[str, nn.Module] = {
            "text_encoder": TextEncoder(checkpoint.text_encoder),
            "vae_encoder": VaeEncoder(checkpoint.vae),
            "vae_decoder": VaeDecoder(checkpoint.vae),
            "conditioner": Conditioner(checkpoint.unet),
            "unet": Captured(step) if self.device.type == "cuda" else step,
        }

    @torch.inference_mode()
    def run(self, role: str, **feeds: np.ndarray) -> list[np.ndarray]:
        outputs = self.graphs[role](*(torch.from_numpy(array).to(self.device) for array in feeds.values()))
        return [output.cpu().contiguous().numpy() for output in outputs]


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
