"""`--check`: has a variant become slower than in an earlier report of `bench/latency.py`?

With several variants their speeds relative to the first are compared, so that a slow moment of the machine cancels
(and a slower first variant is not noticed); with one variant alone, its seconds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import read_json

TIMES = ("step", "edit")
MAY_DIFFER = ("rounds", "warmup")  # settings that change no expected time


def read_earlier(path: Path, names: Sequence[str], settings: Mapping) -> dict:
    """Read the report of an earlier run of the variants `names` with these settings.

    Raises:
        MRCError: no such report, or one that cannot be compared.
    """
    earlier = read_json(path, "give --check a report of --json")
    if not {"settings", "baseline", "variants"} <= earlier.keys():
        raise MRCError(f"--check is {path}, which is no report of this benchmark; write one with --json")
    if missing := [name for name in names if name not in earlier["variants"]]:
        there = ", ".join(earlier["variants"])
        raise MRCError(f"{path} has no {', '.join(missing)}, it has {there}; write a new one with --json")
    for key, value in settings.items():
        if key not in MAY_DIFFER and (before := earlier["settings"].get(key)) != value:
            raise MRCError(f"{key} is {value!r} and was {before!r} in {path}; run with the same options")
    if len(names) > 1 and (first := earlier["baseline"]) != names[0]:
        raise MRCError(f"the first variant is {names[0]} and was {first} in {path}; name the same one first")
    return earlier


def slowdowns(report: Mapping, earlier: Mapping) -> dict[str, dict[str, float]]:
    """How many times as long as in the earlier report a step and an edit of each variant take."""
    first, *others = report["variants"]
    if not others:
        own, before = report["variants"][first], earlier["variants"][first]
        return {first: {time: own["seconds"][time] / before["seconds"][time] for time in TIMES}}
    return {
        name: {time: speedup(earlier, name, time) / speedup(report, name, time) for time in TIMES} for name in others
    }


def speedup(report: Mapping, name: str, time: str) -> float:
    return report["variants"][name][f"{time}_speedup"]["median"]


def check_slowdown(report: Mapping, earlier: Mapping, tolerance: float) -> None:
    """Print how each variant compares with the earlier report.

    Raises:
        SystemExit: with status 1, a step or an edit takes more than `tolerance` times as long.
    """
    slower = []
    for name, factors in slowdowns(report, earlier).items():
        print(f"{name}: " + ", ".join(f"{time} {factor:.2f}× the earlier time" for time, factor in factors.items()))
        slower += [f"{name} {time} {factor:.2f}×" for time, factor in factors.items() if not factor <= tolerance]
    if slower:
        raise SystemExit(f"slower than --tolerance {tolerance:g} allows: {', '.join(slower)}")
