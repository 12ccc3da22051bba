"""Training states: everything a run needs to go on bit for bit (but for float16's loss scale), in one safetensors file.

    OUT/states/00000500/state.safetensors   weights, averages, optimizer moments
    OUT/states/00000500/state.json          step, settings, loss curve

All random numbers are functions of (seed, position), or of (seed, step, process) for the dropout of the
reward layer, so no generator's state is stored.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ..core.errors import MRCError
from ..core.files import foreign_files, read_json, replace_folder
from ..model.checkpoint import write_weights
from .config import TrainConfig
from .sharding import gathered_on_first, shared_like
from .stored import check_record, check_tensors

FILES = ("state.json", "state.safetensors")  # in this order they are removed: without the first it is no state
# Settings that may change between a run and its continuation
RESUMABLE = (
    "steps", "learning_rate", "max_grad_norm", "broken_limit", "checkpoint_every", "checkpoints_total_limit",
    "validate_every", "workers", "tracker", "out", "cache", "shard",
)  # fmt: skip


@dataclass
class TrainState:
    """All that changes while a run trains.

    Attributes:
        trained: the parameters that are trained, in a fixed order.
        average: their exponential moving average.
        optimizer: AdamW over them.
        step: number of finished optimizer steps.
        curve: for each of them [step, loss, seconds].
        broken: messages of the samples that could not be read.
        resized: number of samples so far that were pairs of two sizes.
    """

    trained: list[nn.Parameter]
    average: EMAModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    curve: list[list[float]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    resized: int = 0

    def finish_step(self, loss: float, seconds: float) -> None:
        self.curve.append([self.step, round(loss, 6), round(seconds, 4)])
        self.step += 1

    def mean_losses(self, count: int) -> list[list[float]]:
        """[first step, mean loss] of every `count` steps."""
        return [[self.curve[i][0], round(mean_loss(self.curve[i : i + count]), 5)]
                for i in range(0, len(self.curve), count)]  # fmt: skip

    def tensors(self, first: bool = True) -> dict[str, Tensor]:
        """Weights, averages and optimizer moments, whole; all processes must call it, and only the first gets them."""
        tensors: dict[str, Tensor] = {f"weights.{i}": parameter for i, parameter in enumerate(self.trained)}
        tensors |= {f"average.{i}": average for i, average in enumerate(self.average.shadow_params)}
        tensors |= optimizer_tensors(self.optimizer)
        return gathered_on_first(tensors.items(), first)

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], record: dict) -> None:
        """Take up what `load_state` read.

        Raises:
            MRCError: tensors that are not those of the trained parameters.
        """
        check_tensors(tensors, self.trained, record["step"])
        self.step, self.curve, self.broken = record["step"], record["curve"], set(record["broken"])
        self.resized = record.get("resized", 0)  # older states have no such pairs
        for i, parameter in enumerate(self.trained):
            parameter.copy_(shared_like(tensors[f"weights.{i}"], parameter))
        for i, average in enumerate(self.average.shadow_params):
            average.copy_(shared_like(tensors[f"average.{i}"], average))
        self.average.optimization_step = self.step
        restore_optimizer(self.optimizer, tensors)


def mean_loss(rows: list[list[float]]) -> float:
    """Of rows of the loss curve."""
    return float(np.mean([loss for _, loss, _ in rows]))


def save_state(config: TrainConfig, accelerator: Accelerator, state: TrainState) -> None:
    """`write_state`; all processes must call it, the first one writes."""
    tensors = state.tensors(accelerator.is_main_process)
    if accelerator.is_main_process:
        write_state(Path(config.out), config.record(), state, tensors, config.checkpoints_total_limit)


def write_state(out: Path, config: dict, state: TrainState, tensors: dict[str, Tensor], limit: int) -> None:
    """Write the state whole or not at all, then remove all but the last `limit` up to this step.

    States of later steps go, too: they are of a run that went on from here before, otherwise.
    """
    record = {
        "config": config, "curve": state.curve, "broken": sorted(state.broken), "resized": state.resized,
        "step": state.step,
    }  # fmt: skip
    with replace_folder(out / "states" / f"{state.step:08d}", check_state) as partial:
        write_weights(tensors, partial / "state.safetensors")
        (partial / "state.json").write_text(json.dumps(record))
    states = list_states(out)
    earlier = [folder for folder in states if int(folder.name) <= state.step]
    remove_states(earlier[:-limit] + states[len(earlier) :])


def check_state(folder: Path) -> None:
    """Refuse to replace a folder with other files than a state's."""
    if foreign := foreign_files(folder, FILES):
        raise MRCError(f"{folder} holds {foreign[0]}, which is not of a state; move it away, or give another --out")


def remove_states(folders: list[Path]) -> None:
    """Remove states; a folder with other files in it stays."""
    for folder in folders:
        if not foreign_files(folder, FILES):
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def list_states(out: Path) -> list[Path]:
    """Whole states, oldest first."""
    folders = (p for p in (out / "states").glob("[0-9]*") if re.fullmatch(r"\d{8}", p.name))
    return sorted(p for p in folders if (p / "state.json").is_file())


def load_state(out: Path, which: str, config: dict) -> tuple[dict[str, Tensor], dict] | None:
    """Tensors and record of a state; `which` is "latest" (None if there is none) or a step.

    Raises:
        MRCError: no such state, a damaged one, or settings that differ from the run's.
    """
    states = list_states(out)
    if which == "latest":
        if not states:
            return None
        folder = states[-1]
    else:
        matching = [state for state in states if which.isdigit() and int(state.name) == int(which)]
        if not matching:
            have = ", ".join(str(int(state.name)) for state in states) or "none"
            raise MRCError(f"{out} has no state of step {which!r} (it has: {have}); give one of them or 'latest'")
        folder = matching[0]
    remedy = f"remove {folder} to resume from the state before"
    record = read_json(folder / "state.json", remedy)
    check_record(record, int(folder.name), folder / "state.json", remedy)
    try:
        tensors = safetensors.torch.load_file(folder / "state.safetensors")
    except Exception as error:  # a damaged header makes torch and safetensors raise many types
        raise MRCError(f"{folder} cannot be read ({error}); {remedy}") from None
    if record["step"] > config["steps"]:
        raise MRCError(f"{folder} is of a later step than --steps {config['steps']}; give more, or an earlier --resume")
    if unknown := sorted(record["config"].keys() - config.keys()):
        raise MRCError(f"{folder} has unknown settings ({', '.join(unknown)}); {remedy}")
    # settings that the state's version did not have were at their defaults
    before = {name: getattr(TrainConfig, name, value) for name, value in config.items()} | record["config"]
    changed = [name for name, value in before.items() if name not in RESUMABLE and config[name] != value]
    if changed:
        values = ", ".join(f"{name} {before[name]!r} → {config[name]!r}" for name in changed)
        raise MRCError(f"{folder} was trained with other settings ({values}); give the same or start a new --out")
    return tensors, record


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments by parameter number."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give the optimizer the moments that `optimizer_tensors` named."""
    entries: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            if value.ndim:  # a moment; the step count is the same everywhere
                value = shared_like(value, parameters[int(index)])
            entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
