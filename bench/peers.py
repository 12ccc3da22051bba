"""Alternatives for comparison: eager bfloat16, `torch.compile`, and a plain ONNX export of the eager U-Net.

Each is the eager backend with one part replaced, so that the same loop times all. The plain exports replace the
U-Net alone.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.backends.eager import EagerBackend
from mrc_edit.export.trace import OPSET, quiet_exporter
from mrc_edit.model import Checkpoint, load_checkpoint
from mrc_edit.model.pipeline import decode_latents, encode_image
from mrc_edit.model.unet import MRCUNet


class BFloat16(EagerBackend):
    """Eager PyTorch in bfloat16, channels last; the text encoder in float32."""

    precision = "bfloat16"

    def __init__(self, folder: Path) -> None:
        super().__init__(load_checkpoint(folder))
        for module in (self.checkpoint.unet, self.checkpoint.vae):
            nn.Module.to(module, torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.checkpoint = with_unet(self.checkpoint, half(self.checkpoint.unet))

    @torch.inference_mode()
    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        return encode_image(self.checkpoint, torch.from_numpy(images).bfloat16()).float().numpy()

    @torch.inference_mode()
    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        return decode_latents(self.checkpoint, torch.from_numpy(latents).bfloat16()).float().numpy()


def with_unet(checkpoint: Checkpoint, function: Callable[..., Tensor]) -> Checkpoint:
    return replace(checkpoint, unet=cast(MRCUNet, Called(function)))


class Called:
    """Takes the place of the U-Net in `EagerBackend`."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(self, *inputs: Tensor, **rewards: Tensor) -> Tensor:
        return self.function(*inputs, *rewards.values())


def half(unet: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(sample: Tensor, timestep: Tensor, states: Tensor, *rewards: Tensor) -> Tensor:
        scores = [reward.bfloat16() if i else reward for i, reward in enumerate(rewards)]
        return unet(sample.bfloat16(), timestep, states.bfloat16(), *scores).float()

    return run


def compiled(folder: Path) -> EagerBackend:
    """`torch.compile` of the bfloat16 U-Net."""
    backend = BFloat16(folder)
    inner: Any = backend.checkpoint.unet
    inner.function = torch.compile(inner.function)
    return backend


def plain_export(folder: Path, target: Path) -> None:
    """Export the eager U-Net without our savings: one graph, all inputs at every step."""
    checkpoint = load_checkpoint(folder)
    unet = checkpoint.unet
    if not unet.rewards:
        raise MRCError(f"{folder} has no rewards; the plain export is compared for MRC checkpoints")
    length, width = checkpoint.text_encoder.config.max_position_embeddings, unet.config.cross_attention_dim
    example = (
        torch.rand(3, 8, 16, 24), torch.tensor(500.0), torch.rand(3, length, width), torch.rand(3, 3),
        torch.rand(3, width),
    )  # fmt: skip
    dynamic = torch.export.Dim.DYNAMIC
    shapes: Any = ({0: dynamic, 2: dynamic, 3: dynamic}, {}, {0: dynamic}, {0: dynamic}, {0: dynamic})
    with torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(
            unet.eval(), example, dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, verbose=False,
            input_names=list(NAMES), output_names=["noise"],
        )  # fmt: skip
        assert program is not None
        program.save(target, external_data=True)


NAMES = ("sample", "timestep", "states", "scores", "text")


class PlainOnnxRuntime(EagerBackend):
    """The plain export on ONNX Runtime."""

    def __init__(self, folder: Path, graph: Path) -> None:
        import onnxruntime

        super().__init__(load_checkpoint(folder))
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

        def run(*inputs: Tensor) -> Tensor:
            feeds = {name: tensor.numpy() for name, tensor in zip(NAMES, inputs, strict=True)}
            return torch.from_numpy(session.run(None, feeds)[0])

        self.checkpoint = with_unet(self.checkpoint, run)


class PlainOpenVino(EagerBackend):
    """The plain export on OpenVINO, compiled for the shapes of its first call."""

    def __init__(self, folder: Path, graph: Path, precision: str) -> None:
        super().__init__(load_checkpoint(folder))
        self.precision = precision
        requests: dict[tuple, Any] = {}

        def run(*inputs: Tensor) -> Tensor:
            from mrc_edit.engine.backends.openvino import CORE

            arrays = {name: tensor.numpy() for name, tensor in zip(NAMES, inputs, strict=True)}
            shapes = tuple(array.shape for array in arrays.values())
            if shapes not in requests:
                model = CORE.read_model(graph)
                model.reshape({name: list(array.shape) for name, array in arrays.items()})
                hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
                settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
                requests[shapes] = CORE.compile_model(model, "CPU", settings).create_infer_request()
            requests[shapes].infer(arrays, share_inputs=True)
            return torch.from_numpy(requests[shapes].get_output_tensor(0).data.copy())

        self.checkpoint = with_unet(self.checkpoint, run)


PEERS: dict[str, Callable[[Path, Path], EagerBackend]] = {
    "eager:bfloat16": lambda folder, graph: BFloat16(folder),
    "compile:bfloat16": lambda folder, graph: compiled(folder),
    "plain-onnxruntime": lambda folder, graph: PlainOnnxRuntime(folder, graph),
    "plain-openvino:float32": lambda folder, graph: PlainOpenVino(folder, graph, "float32"),
    "plain-openvino:bfloat16": lambda folder, graph: PlainOpenVino(folder, graph, "bfloat16"),
}
