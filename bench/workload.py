"""What a timed edit asks for, and the variants that it is asked of."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.core.reward import BEST, NO_FAULTS
from mrc_edit.core.schema import JsonObject
from mrc_edit.engine import EditResult, Engine
from mrc_edit.engine.backends import BACKENDS
from mrc_edit.engine.models import model_folder
from mrc_edit.engine.noise import generator
from mrc_edit.engine.plan import Plan, make_plan
from mrc_edit.engine.request import OutputType

if TYPE_CHECKING:
    from mrc_edit.engine.engine import Callback

INSTRUCTION = "make it look like a snowy winter scene"
PEERS = (
    "eager:bfloat16", "compile:bfloat16", "plain-onnxruntime", "plain-openvino:float32", "plain-openvino:bfloat16",
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """Arguments of every timed edit."""

    size: int  # pixels of a side
    steps: int
    batch: int = 1  # images an edit
    scheduler: str = "euler_ancestral"
    guidance: float = 7.5
    image_guidance: float = 1.5

    def plan(self) -> Plan:
        """The branches that a step computes."""
        reward = (BEST, NO_FAULTS)
        return make_plan([INSTRUCTION] * self.batch, [(reward,) * 3] * self.batch, self.guidance, self.image_guidance)


@dataclass(frozen=True)
class Variant:
    """A backend with its precision and tier, or one of `PEERS`.

    Attributes:
        name: `backend:precision:tier`, the last two optional.
        precision: empty for the backend's own choice.
        folder: checkpoint or export that it opens.
        provider: ONNX Runtime's execution provider; empty for its own choice.
        graph: a plain export of the eager U-Net, which some peers run.
        device: where PyTorch computes, cpu or cuda; empty for the GPU, where there is one.
    """

    name: str
    backend: str
    precision: str
    tier: str
    folder: Path
    provider: str = ""
    graph: Path = Path()
    device: str = ""

    def open(self) -> Engine:
        """Load the engine."""
        if self.name in PEERS:
            from mrc_edit.bench.peers import open_peer

            return Engine(open_peer(self.name, self.folder, self.graph, self.device))
        options: JsonObject = {"provider": self.provider} if self.provider else {}
        if self.device and "device" in BACKENDS[self.backend].options:
            options["device"] = self.device
        precision = self.precision or None
        return Engine.from_pretrained(self.folder, self.backend, precision=precision, tier=self.tier, **options)


def parse_variant(
    name: str, model: str | Path, exported: Path | None = None, provider: str = "", graph: Path = Path(),
    device: str = "",
) -> Variant:  # fmt: skip
    """The variant of a name.

    Args:
        model: checkpoint or export folder, or the name of a shipped model.
        exported: export folder in place of `model` for the backends that read exports.
        provider: for the variants on ONNX Runtime.
        graph: for the peers that run a plain export.
        device: for the variants that PyTorch computes.

    Raises:
        MRCError: an unknown name.
    """
    check_names([name])
    backend, precision, tier = (*name.split(":"), "", "")[:3]
    backend = "eager" if name in PEERS else backend
    folder = exported if exported and BACKENDS[backend].reads == "export" else model_folder(model, backend)
    return Variant(
        name, backend, precision, tier or "exact", folder, provider if backend == "onnxruntime" else "", graph, device
    )


def check_names(names: list[str]) -> None:
    """Raises MRCError for names that are no variants."""
    for name in names:
        backend, *more = name.split(":")
        if name not in PEERS and (backend not in BACKENDS or len(more) > 2):
            choices = ", ".join((*BACKENDS, *PEERS))
            raise MRCError(f"variant {name!r} is unknown; give backend:precision:tier with one of {choices}")


def photograph(size: int) -> np.ndarray:
    """A smooth random image `[size, size, 3]` uint8; latency does not depend on the picture."""
    coarse = generator(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size)))


def edit(
    engine: Engine, workload: Workload, output_type: OutputType = "np", callback: "Callback | None" = None
) -> EditResult:
    """The edit that benchmarks time; every image of the batch is the same."""
    return engine.edit(
        [photograph(workload.size)] * workload.batch,
        INSTRUCTION,
        num_inference_steps=workload.steps,
        scheduler=workload.scheduler,
        guidance_scale=workload.guidance,
        image_guidance_scale=workload.image_guidance,
        seed=0,
        resolution=0,
        output_type=output_type,
        callback_on_step_end=callback,
    )
