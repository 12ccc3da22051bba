"""Sessions of ONNX Runtime with bound inputs and outputs, on the host or on a GPU."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from ...core.errors import MRCError
from ..profiles import Profile


@dataclass(frozen=True)
class Slice:
    """One row of a float32 value, along its first dimension, where it lies."""

    whole: OrtValue
    row: int

    def shape(self) -> Sequence[int]:
        return self.whole.shape()[1:]

    def bind(self, binding: onnxruntime.IOBinding, name: str, device: str, device_id: int) -> None:
        start = self.whole.data_ptr() + self.row * int(np.prod(self.shape())) * 4
        binding.bind_input(name, device, device_id, np.float32, self.shape(), start)


class SessionRunner:
    """Runs a session into buffers of its own, one set for each set of input shapes.

    An input that is the one of the call before stays bound.

    Args:
        device, device_id: where the session computes.
        kept: outputs that stay there; all others come to the host.
        graph, profile: name of the graph, and the shapes that it was built for, if for some only.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        device: str,
        device_id: int = 0,
        kept: Collection[str] = (),
        graph: str = "",
        profile: Profile | None = None,
    ) -> None:
        self.session, self.device, self.device_id = session, device, device_id
        self.graph, self.profile = graph, profile
        self.names = [output.name for output in session.get_outputs()]
        self.devices = {name: device if name in kept else "cpu" for name in self.names}
        self.bindings: dict[tuple, Any] = {}
        self.bound: dict[tuple, dict[str, OrtValue | Slice]] = {}

    def __call__(self, feeds: dict[str, Any]) -> dict[str, OrtValue]:
        shapes = {name: tuple(value.shape()) for name, value in feeds.items()}
        key = tuple(shapes.values())
        first = key not in self.bindings
        if first:
            self.check(shapes)
            self.bindings[key], self.bound[key] = self.session.io_binding(), {}
        binding, bound = self.bindings[key], self.bound[key]
        for name, value in feeds.items():
            if bound.get(name) is not value:
                if isinstance(value, Slice):
                    value.bind(binding, name, self.device, self.device_id)
                else:
                    binding.bind_ortvalue_input(name, value)
                bound[name] = value
        if first:
            for name, device in self.devices.items():
                binding.bind_output(name, device, self.device_id if device != "cpu" else 0)
        self.session.run_with_iobinding(binding)
        outputs = dict(zip(self.names, binding.get_outputs(), strict=True))
        if first:
            for name, value in outputs.items():
                binding.bind_ortvalue_output(name, value)
        return outputs

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse shapes that the graph was not built for.

        Raises:
            MRCError: the first input with such a shape.
        """
        for name, bounds in (self.profile or {}).items():
            least, greatest = bounds["min"], bounds["max"]
            if not all(a <= n <= b for a, n, b in zip(least, shapes[name], greatest, strict=True)):
                raise MRCError(
                    f"{self.graph} was built for {name} from {least} to {greatest} and gets {list(shapes[name])}; "
                    "open the engine with other sizes=(least, best, greatest pixels of a side) or max_batch"
                )
