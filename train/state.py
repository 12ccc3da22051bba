"""Training states: everything a run needs to go on bit for bit, in one safetensors file.

    OUT/states/000500/state.safetensors   weights, averages, optimizer moments
    OUT/states/000500/state.json          step, settings, loss curve

All random numbers are functions of (seed, position), or of (seed, step, process) for the reward
layer's dropout, so no generator's state is kept.
"""

import json
import shutil
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from ..core.errors import MRCError
from ..core.files import replace_folder
from ..model.checkpoint import write_weights
from .sharding import shared_like

# Settings that may change between a run and its continuation
RESUMABLE = (
    "steps", "learning_rate", "max_grad_norm", "broken_limit", "checkpoint_every", "checkpoints_total_limit",
    "validate_every", "workers", "tracker", "out", "cache", "shard",
)  # fmt: skip


def save_state(out: Path, step: int, tensors: dict[str, torch.Tensor], record: dict, keep: int) -> Path:
    """Write the state of `step` whole or not at all, then drop all but the last `keep` states."""
    folder = out / "states" / f"{step:08d}"
    with replace_folder(folder) as partial:
        write_weights(tensors, partial / "state.safetensors")
        (partial / "state.json").write_text(json.dumps(record | {"step": step}))
    for old in list_states(out)[:-keep]:
        shutil.rmtree(old)
    return folder


def list_states(out: Path) -> list[Path]:
    """Whole states, oldest first."""
    return sorted(p for p in (out / "states").glob("[0-9]*") if (p / "state.json").is_file())


def load_state(out: Path, which: str, config: dict) -> tuple[dict[str, torch.Tensor], dict] | None:
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
        named = [state for state in states if which.isdigit() and int(state.name) == int(which)]
        if not named:
            have = ", ".join(str(int(state.name)) for state in states) or "none"
            raise MRCError(f"{out} has no state of step {which!r} (it has: {have}); give one of them or 'latest'")
        folder = named[0]
    try:
        tensors = safetensors.torch.load_file(folder / "state.safetensors")
        record = json.loads((folder / "state.json").read_text())
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise MRCError(f"{folder} cannot be read ({error}); remove it to resume from the one before") from None
    changed = [name for name, value in record["config"].items() if name not in RESUMABLE and config[name] != value]
    if changed:
        values = ", ".join(f"{name} {record['config'][name]!r} → {config[name]!r}" for name in changed)
        raise MRCError(f"{folder} was trained with other settings ({values}); give the same or start a new --out")
    return tensors, record


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's moments by parameter number."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    entries: dict[int, dict[str, torch.Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            if value.ndim:  # a moment; the step count is the same everywhere
                value = shared_like(value, parameters[int(index)])
            entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
