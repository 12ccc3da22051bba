"""What a step must at least do, its operations and the weights it reads, against the machine's limits."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mrc_edit.bench.machine import Limits
from mrc_edit.bench.workload import Workload
from mrc_edit.core.errors import MRCError

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}  # of a number


@dataclass(frozen=True)
class StepWork:
    """Work of one exact step of the U-Net.

    Attributes:
        operations: floating-point operations; None where they were not counted.
        parameters: how many numbers the weights are that the step reads; None where they were not counted.
        note: why something was not counted.
    """

    operations: float | None = None
    parameters: int | None = None
    note: str = ""

    def shares(self, seconds: float, precision: str, limits: Limits) -> dict[str, float | None]:
        """What a step of `seconds` uses of the machine's limits; None where one of both is unknown.

        Returns:
            `product_share`: operations a second over those of a large matrix product in `precision`;
            `copy_share`: bytes of the weights a second over the bandwidth of a copy.
        """
        product = copy = None
        if self.operations is not None and precision in limits:
            product = self.operations / seconds / limits[precision]
        if self.parameters is not None and precision in BYTES:
            copy = self.parameters * BYTES[precision] / seconds / limits["copy"]
        return {"product_share": product, "copy_share": copy}


def count_step(checkpoint: Path | None, workload: Workload) -> StepWork:
    """Count the work of a step with PyTorch, on shapes alone; None for a model without its checkpoint."""
    if checkpoint is None:
        return StepWork(note="the work of a step is counted on a checkpoint, and this is an export")
    if find_spec("torch") is None or find_spec("diffusers") is None:
        return StepWork(note="the work of a step is counted with PyTorch: pip install 'mrc-edit[torch]'")
    from mrc_edit.bench.flop_count import count_operations, empty_checkpoint, step_parameters

    empty = empty_checkpoint(checkpoint)
    try:
        return StepWork(count_operations(empty, workload.size, workload.plan()), step_parameters(empty.unet))
    except MRCError as error:  # eager computes checkpoints that the step graph does not
        return StepWork(note=f"the work of a step was not counted: {error}")
