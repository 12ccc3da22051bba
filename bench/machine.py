"""The machine a benchmark runs on: what it is, which threads are used, and its own limits.

The limits are measured in the rounds of a benchmark like a variant. Speed on a shared machine moves by tens of
per cent from run to run; a variant's share of a limit of the same run moves less.
"""

import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import numpy as np

from mrc_edit.bench.runner import seconds_of
from mrc_edit.core.cpu import cpu_entry
from mrc_edit.core.errors import MRCError

PACKAGES = (
    "mrc-edit", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "diffusers", "transformers", "triton",
)  # fmt: skip
LARGEST = 2048  # rows and columns of the matrices
REPEATS = 3  # the fastest counts
PRODUCT_SECONDS = 0.25  # of a product, about: smaller matrices where a precision is slow
COPY_BYTES = 128 << 20  # more than the caches hold

Limits = dict[str, float]  # "float32", "bfloat16": FLOP/s of a matrix product; "copy": bytes/s read and written


def describe_machine() -> dict[str, str | int | dict[str, str]]:
    """CPU, its cores and those used, versions, date and command line of this run."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "threads": len(usable_cores()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
    }


def cpu_model() -> str:
    return cpu_entry("model name") or platform.processor() or platform.machine()


def package_versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed; nothing is imported."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Run the block, and the processes it starts, on `count` cores with as many threads; None changes nothing.

    Raises:
        MRCError: more cores than there are, or a system on which a process cannot be bound to cores.
    """
    if count is None:
        yield
        return
    cores = usable_cores()
    if not 1 <= count <= len(cores):
        raise MRCError(f"--threads is {count}; this process may use {len(cores)} cores, give 1 to {len(cores)}")
    if not hasattr(os, "sched_setaffinity"):
        raise MRCError("--threads binds processes to cores, which needs Linux; leave it out")
    before = os.environ.get("OMP_NUM_THREADS")
    os.sched_setaffinity(0, cores[:count])
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def prepare_limits(with_torch: bool) -> Callable[[], Limits]:
    """A function that measures this machine's limits; of bfloat16 with PyTorch alone."""
    products: dict[str, Callable[[int], float]] = {"float32": numpy_product}
    if with_torch and find_spec("torch"):
        products = {name: torch_product(name) for name in ("float32", "bfloat16")}
    sizes = {name: product_size(product) for name, product in products.items()}
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.zeros_like(source)

    def copy(size: int) -> float:
        return seconds_of(lambda: np.copyto(target[:size], source[:size]))

    def measure_limits() -> Limits:
        limits = {name: 2 * sizes[name] ** 3 / fastest(product, sizes[name]) for name, product in products.items()}
        return limits | {"copy": 2 * COPY_BYTES / fastest(copy, COPY_BYTES)}

    return measure_limits


def fastest(seconds: Callable[[int], float], size: int) -> float:
    return min(seconds(size) for _ in range(REPEATS))


def numpy_product(size: int) -> float:
    """Seconds of one float32 product of square matrices."""
    matrix = np.full((size, size), 0.5, np.float32)
    return seconds_of(lambda: matrix @ matrix)


def torch_product(precision: str) -> Callable[[int], float]:
    import torch

    def product(size: int) -> float:
        matrix = torch.full((size, size), 0.5, dtype=getattr(torch, precision))
        return seconds_of(lambda: matrix @ matrix)

    return product


def product_size(product: Callable[[int], float]) -> int:
    """The largest size, a power of two, at which a product takes about `PRODUCT_SECONDS` or less."""
    size = 256
    product(size)  # the first call of a library takes longer
    while size < LARGEST and 8 * fastest(product, size) <= PRODUCT_SECONDS:
        size *= 2
    return size
