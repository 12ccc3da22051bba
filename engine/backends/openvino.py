"""OpenVINO on an export folder: the same ONNX graphs on any x86-64 or Arm CPU; no PyTorch.

A graph is compiled for the shapes it meets, once for each. Compiled models are not kept on disk: at full
size one is as large as the float32 weights, and takes longer to write than the graph to compile.
"""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13, properties

from ...core.errors import MRCError
from ..contract import LOOP, STEP_ROLES
from .exported import ExportBackend

# the conditioner stays in float32, as in exports
HALF = ("text_encoder", "vae_encoder", "vae_decoder", *STEP_ROLES, "unet_loop")


def load(folder: Path, precision: str | None = None, loop: bool = False) -> "OpenVinoBackend":
    return OpenVinoBackend(folder, precision, loop)


class OpenVinoBackend(ExportBackend):
    """One compiled model a graph and set of shapes.

    `precision` is of the arithmetic: float32, bfloat16, or int8 in the U-Net and bfloat16 elsewhere; by
    default bfloat16 where the CPU multiplies it, float32 where not.
    """

    def __init__(self, folder: Path, precision: str | None = None, loop: bool = False) -> None:
        if precision not in (None, "float32", "bfloat16", "int8"):
            raise MRCError(f"precision is {precision!r}; OpenVINO computes in float32, bfloat16 or int8")
        super().__init__(folder, "int8" if precision == "int8" else None, loop)
        self.core = openvino.Core()
        fast = "BF16" in self.core.get_property("CPU", properties.device.capabilities)
        if precision == "bfloat16" and not fast:
            raise MRCError("precision is 'bfloat16' and this CPU has no instructions for it; use float32 or int8")
        self.precision = precision or ("bfloat16" if fast else "float32")
        self.half = fast and self.precision != "float32"
        self.paths = {role: self.confirm(self.artifact(role)) for role in self.roles}
        self.models: dict[tuple, openvino.CompiledModel] = {}

    def compiled(self, role: str, shapes: dict[str, tuple[int, ...]]) -> openvino.CompiledModel:
        model = self.core.read_model(self.paths[role])
        if role in STEP_ROLES:
            part_text(model)
        known = {name for port in model.inputs for name in port.get_names()}
        fixed = {name: list(shape) for name, shape in shapes.items() if name in known}
        for port in model.inputs:
            if port.any_name.startswith("text_kv."):
                fixed[port.any_name] = [*shapes["text_kv"][:2], port.partial_shape[2].get_length()]
        model.reshape(fixed)
        kind = openvino.Type.bf16 if self.half and role in HALF else openvino.Type.f32
        settings = {
            properties.hint.inference_precision: kind,
            properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
        }
        if role == "unet_loop" and not self.half:  # its group norms are left to snippets, which reach no loop's body
            settings["SNIPPETS_MODE"] = "DISABLE"
        try:
            return self.core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise MRCError(f"OpenVINO refuses {self.paths[role]}: {str(error).splitlines()[0]}") from None

    def hold(self, array: np.ndarray) -> openvino.Tensor:
        return openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)

    def run(self, role: str, kept: dict | None = None, **feeds: Any) -> list[np.ndarray]:
        tensors = {k: v if isinstance(v, openvino.Tensor) else self.hold(v) for k, v in feeds.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if role == "unet_loop":  # compiled for any number of steps
            shapes |= {name: (-1, *shapes[name][1:]) for name, dims in LOOP.items() if dims[0] == "steps"}
        key = (role, *shapes.values())
        if key not in self.models:
            self.models[key] = self.compiled(role, shapes)
        requests = {} if kept is None else kept
        if key not in requests:
            requests[key] = self.models[key].create_infer_request()
            if role in STEP_ROLES:
                set_parts(requests[key], tensors["text_kv"].data)
        request = requests[key]
        for port in request.model_inputs:
            for name in port.get_names() & tensors.keys():  # a port may have several names
                request.set_tensor(port, tensors[name])
        request.infer()
        return [request.get_output_tensor(i).data for i in range(len(request.model_outputs))]


def part_text(model: openvino.Model) -> None:
    """Make each key and value of the text an input of a step graph, in place: a split copies them at every step."""
    whole = next(node for node in model.get_parameters() if "text_kv" in node.output(0).get_names())
    consumers = [target.get_node() for target in whole.output(0).get_target_inputs()]
    if [node.get_type_name() for node in consumers] not in (["Split"], ["VariadicSplit"]):
        return  # unused; or half precision, which converts first
    (split,) = consumers
    parts = []
    for i, output in enumerate(split.outputs()):
        part = opset13.parameter(output.get_partial_shape(), output.get_element_type())
        part.output(0).set_names({f"text_kv.{i}"})
        for target in output.get_target_inputs():
            target.replace_source_output(part.output(0))
        parts.append(part)
    model.add_parameters(parts)
    model.remove_parameter(whole)


def set_parts(request: openvino.InferRequest, text_kv: np.ndarray) -> None:
    """Set those inputs, if any, to copies from `[N, L, Σk]`, which stay for all runs of the request."""
    start = 0
    for port in request.model_inputs:
        if port.any_name.startswith("text_kv."):
            end = start + port.shape[2]
            request.set_tensor(port, openvino.Tensor(np.ascontiguousarray(text_kv[..., start:end])))
            start = end
