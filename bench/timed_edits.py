"""Time whole edits of several variants: a child process each, one edit of each a round."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import numpy as np

from mrc_edit.bench.child import Child, child
from mrc_edit.bench.machine import Limits, describe_machine, prepare_limits
from mrc_edit.bench.memory import memory_bytes, peak_device_memory, peak_private_memory
from mrc_edit.bench.runner import percentiles, ratios, run_in_turn
from mrc_edit.bench.step_work import StepWork, count_step
from mrc_edit.bench.workload import Variant, Workload, edit
from mrc_edit.core.fidelity import psnr, relative_error
from mrc_edit.core.schema import JsonObject
from mrc_edit.engine import EditResult

PHASES = ("text", "encode", "condition", "step", "decode")
LIMITS = "limits of the machine"

Entry = JsonObject  # what the report has of a variant, as JSON


@dataclass(frozen=True)
class TimedEdit:
    """One edit: its seconds by phase and by step, its final latents `[B, Z, h, w]` and first image, in 0…1."""

    phases: dict[str, float]
    steps: list[float]
    latents: np.ndarray
    image: np.ndarray


def phase_seconds(result: EditResult, wall: float) -> dict[str, float]:
    """Seconds by phase; `step` is the mean denoising step, `parts` what the phases add up to."""
    timings = {name: result.timings[name] for name in PHASES if name in result.timings}
    step = fmean(result.step_seconds)
    parts = sum(timings.values()) + median(result.step_seconds) * len(result.step_seconds)
    return timings | {"step": step, "edit": wall, "parts": parts}


def prepare_variant(variant: Variant, workload: Workload) -> tuple[Entry, Callable[[], TimedEdit]]:
    """For `child`: load the engine and edit once with one step; then one timed edit a request."""
    start = perf_counter()
    with peak_private_memory() as peak:
        engine = variant.open()
        loaded = perf_counter() - start
        edit(engine, replace(workload, steps=1))
        first = perf_counter() - start
    device = str(getattr(engine.backend, "device", "cpu"))
    report = {
        "precision": engine.backend.precision,
        "device": device,
        "load_s": loaded,
        "first_edit_s": first,
        "peak_bytes": memory_bytes("VmHWM"),
        "peak_private_bytes": peak_device_memory() if device.startswith("cuda") else peak[0],
    }

    def timed_edit() -> TimedEdit:
        last: dict[str, np.ndarray] = {}
        start = perf_counter()
        result = edit(engine, workload, callback=lambda engine, step, timestep, state: last.update(state))
        wall = perf_counter() - start
        return TimedEdit(phase_seconds(result, wall), result.step_seconds, last["latents"], result.images[0])

    return report, timed_edit


def prepare_machine(checkpoint: Path | None, workload: Workload) -> tuple[StepWork, Callable[[], Limits]]:
    """For `child`: count the work of a step, then measure the machine's limits at each request."""
    return count_step(checkpoint, workload), prepare_limits(with_torch=checkpoint is not None)


def time_variants(
    variants: list[Variant], workload: Workload, rounds: int, warmup: int, checkpoint: Path | None
) -> Entry:
    """The report, without settings; the first variant is what others are compared with.

    Args:
        warmup: edits of each variant before the timed rounds, at least 1; the first gives fidelity.
        checkpoint: where the work of a step is counted; None uses no PyTorch for that.
    """
    with ExitStack() as stack:
        machine = stack.enter_context(child(LIMITS, prepare_machine, checkpoint, workload))
        work: StepWork = machine.receive()
        children: dict[str, Child] = {}
        entries: dict[str, Entry] = {}
        for variant in variants:
            children[variant.name] = stack.enter_context(child(variant.name, prepare_variant, variant, workload))
            entries[variant.name] = children[variant.name].receive()
        runs: dict[str, Callable[[], TimedEdit]] = {name: process.request for name, process in children.items()}
        outputs = {name: edits[0] for name, edits in run_in_turn(runs, 1, unit="edit").items()}
        results = run_in_turn({LIMITS: machine.request} | runs, rounds, warmup - 1, unit="edit")
    measured = results.pop(LIMITS)
    limits = {key: median(one[key] for one in measured) for key in measured[0]}
    first = variants[0].name
    for variant in variants:
        name = variant.name
        entry = entries[name]
        entry |= fidelity(outputs[name], outputs[first]) | summarize(results[name], results[first])
        comparable = variant.tier == "exact" and entry["device"] == "cpu"
        entry |= (work if comparable else StepWork()).shares(entry["seconds"]["step"], entry["precision"], limits)
        entry["rounds"] = [one.phases | {"steps": one.steps} for one in results[name]]
    return {
        "baseline": first,
        "machine": describe_machine(),
        "limits": limits,
        "work": asdict(work),
        "variants": entries,
    }


def fidelity(actual: TimedEdit, expected: TimedEdit) -> dict[str, float | None]:
    """Relative error of the latents, and PSNR of the image, None where the images are equal."""
    decibels = psnr(actual.image, expected.image)
    return {
        "latents_relative_error": relative_error(actual.latents, expected.latents),
        "psnr_db": decibels if np.isfinite(decibels) else None,
    }


def summarize(edits: list[TimedEdit], baseline: list[TimedEdit]) -> Entry:
    """Medians, percentiles and speed relative to the baseline's edits of the same rounds."""
    seconds = {key: median(one.phases[key] for one in edits) for key in edits[0].phases}
    summary: Entry = {
        "seconds": seconds,
        "percentiles": {
            "step": percentiles([step for one in edits for step in one.steps]),
            "edit": percentiles([one.phases["edit"] for one in edits]),
        },
        "edit_over_parts": median(one.phases["edit"] / one.phases["parts"] for one in edits),
    }
    for key in ("step", "edit"):
        first, own = ([one.phases[key] for one in group] for group in (baseline, edits))
        summary[f"{key}_speedup"] = ratios(first, own)
    return summary
