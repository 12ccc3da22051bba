"""Memory and processor time of a process (Linux), and memory of the GPU."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL = 0.02  # seconds between two looks


def memory_bytes(field: str, process: int | None = None) -> int:
    """A memory figure of `/proc/…/status` in bytes, of this process or another.

    `getrusage` would count the parent's too.
    """
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process or 'self'}/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def processor_seconds(process: int) -> float:
    """Seconds of the processor that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_device_memory() -> int:
    """The most memory of the GPU that PyTorch held in this process, in bytes."""
    import torch

    return torch.cuda.max_memory_reserved()


@contextmanager
def peak_private_memory() -> Iterator[list[int]]:
    """A list whose one entry becomes the greatest private memory of the block, in bytes.

    Private is what is no mapped file; the system can take those back.
    """
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            peak[0] = max(peak[0], memory_bytes("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], memory_bytes("RssAnon"))
