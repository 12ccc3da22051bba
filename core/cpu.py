"""The processor, as Linux describes it."""

from pathlib import Path

INFO = Path("/proc/cpuinfo")


def cpu_entry(*names: str) -> str:
    """The value of the first line of `/proc/cpuinfo` that has one of these names; empty where there is none."""
    lines = INFO.read_text().splitlines() if INFO.is_file() else []
    entries = ((name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
    return next((value for name, value in entries if name in names), "")


def cpu_features() -> str:
    """The names of the processor's instruction sets, separated by spaces; empty where the system has no such list."""
    return cpu_entry("flags", "Features")  # of x86 and of Arm
