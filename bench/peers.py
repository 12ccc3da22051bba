"""Alternatives for comparison: eager bfloat16, `torch.compile`, and a plain ONNX export of the eager U-Net.

Each is the eager backend with one part replaced, so that the same loop times all. The plain exports replace the
U-Net alone.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.backends.devices import torch_device
from mrc_edit.engine.backends.eager import EagerBackend
from mrc_edit.export.options import OPSET
from mrc_edit.export.trace import quiet_exporter
from mrc_edit.model import load_checkpoint


def eager(folder: Path, device: str) -> EagerBackend:
    """Eager PyTorch in bfloat16, channels last; the text encoder in float32."""
    return EagerBackend(load_checkpoint(folder), torch_device(device or None), torch.bfloat16)


def compiled(folder: Path, device: str) -> EagerBackend:
    """The same with `torch.compile` of the U-Net, on a GPU with its CUDA graphs."""
    backend = eager(folder, device)
    backend.unet = torch.compile(backend.unet, mode="reduce-overhead" if backend.device.type == "cuda" else None)
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

        def run(*inputs: Tensor, **rewards: Tensor) -> Tensor:
            feeds = {name: tensor.numpy() for name, tensor in zip(NAMES, (*inputs, *rewards.values()), strict=True)}
            return torch.from_numpy(session.run(None, feeds)[0])

        self.unet = run


class PlainOpenVino(EagerBackend):
    """The plain export on OpenVINO, compiled for the shapes of its first call."""

    def __init__(self, folder: Path, graph: Path, precision: str) -> None:
        super().__init__(load_checkpoint(folder))
        self.precision = precision
        requests: dict[tuple, Any] = {}

        def run(*inputs: Tensor, **rewards: Tensor) -> Tensor:
            from mrc_edit.engine.backends.openvino import CORE

            arrays = {name: tensor.numpy() for name, tensor in zip(NAMES, (*inputs, *rewards.values()), strict=True)}
            shapes = tuple(array.shape for array in arrays.values())
            if shapes not in requests:
                model = CORE.read_model(graph)
                model.reshape({name: list(array.shape) for name, array in arrays.items()})
                hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
                settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
                requests[shapes] = CORE.compile_model(model, "CPU", settings).create_infer_request()
            requests[shapes].infer(arrays, share_inputs=True)
            return torch.from_numpy(requests[shapes].get_output_tensor(0).data.copy())

        self.unet = run


def open_peer(name: str, folder: Path, graph: Path, device: str) -> EagerBackend:
    """The peer of a name in `workload.PEERS`.

    Raises:
        MRCError: it does not compute on that device.
    """
    if name == "eager:bfloat16":
        return eager(folder, device)
    if name == "compile:bfloat16":
        return compiled(folder, device)
    if device not in ("", "cpu"):
        raise MRCError(f"{name} is a peer on the CPU and --device is {device}; give cpu, or leave the variant out")
    if name == "plain-onnxruntime":
        return PlainOnnxRuntime(folder, graph)
    return PlainOpenVino(folder, graph, name.split(":")[1])
