"""What `mrc doctor` says of the machine and of the installed packages. Nothing heavy is imported."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

from packaging.requirements import Requirement

from ..bench.machine import cpu_model, usable_cores
from ..core.console import DISTRIBUTION
from ..core.cpu import cpu_features
from ..core.memory import GROUP, free_memory

# Instructions that computing depends on, by /proc/cpuinfo's names
FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "i8mm", "bf16",
)  # fmt: skip
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
INSTEAD = {"cpu": "gpu", "gpu": "cpu"}  # extras that cannot live together


def describe_machine() -> dict[str, Any]:
    """CPU, its cores and instructions, memory in bytes, and GPUs."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "usable_cores": len(usable_cores()),
        "features": [name for name in FEATURES if name in cpu_features().split()],
        "memory": memory(),
        "gpus": gpus(),
    }


def memory() -> dict[str, int]:
    """Bytes that this process could have in all, and that are free, where the system says so."""
    found = {"total": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    limit = GROUP / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():  # of a container
        found["total"] = min(found["total"], int(text))
    free = free_memory()
    return found if free is None else found | {"free": free}


def gpus() -> list[str]:
    """NVIDIA GPUs as their driver names them."""
    if shutil.which(QUERY[0]) is None:
        return []
    done = subprocess.run(QUERY, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def lacking() -> dict[str, list[str]]:
    """By extra the requirements that are not installed, or in another version; without `dev`."""
    names = [name for name in metadata(DISTRIBUTION).get_all("Provides-Extra") or [] if name != "dev"]
    found = {name: [text for each in requirements(name) if (text := fault(each))] for name in names}
    for name, other in INSTEAD.items():
        if found[name] and not found[other]:
            del found[name]
    return found


def requirements(extra: str) -> list[Requirement]:
    """What an extra asks for here, with that of the extras it names."""
    found: list[Requirement] = []
    for each in map(Requirement, requires(DISTRIBUTION) or []):
        if each.marker is None or not each.marker.evaluate({"extra": extra}) or each.marker.evaluate({"extra": ""}):
            continue
        found += [one for name in each.extras for one in requirements(name)] if each.name == DISTRIBUTION else [each]
    return found


def fault(requirement: Requirement) -> str:
    """What is wrong with the installed version; empty where nothing is."""
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return wanted
    return "" if requirement.specifier.contains(found, prereleases=True) else f"{wanted} (here is {found})"
