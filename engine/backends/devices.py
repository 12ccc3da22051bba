"""The device that PyTorch computes on, and what float32 means there."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch

from ...core.errors import MRCError

CUDNN: Any = torch.backends.cudnn  # its settings have no types
PRODUCTS = (CUDNN.conv, CUDNN.rnn, torch.backends.cuda.matmul)
LOCK = RLock()  # the settings are the process's


def torch_device(name: str | None) -> torch.device:
    """The device of that name; for None the GPU, or the CPU where there is none.

    Raises:
        MRCError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MRCError(f"device is {name!r}; give cpu, cuda, or cuda:1 for the second GPU") from None
    if device.type not in ("cpu", "cuda"):
        raise MRCError(f"device is {name!r}; give cpu, cuda, or cuda:1 for the second GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MRCError(f"device is {name!r} and PyTorch sees {torch.cuda.device_count()} GPUs here; give another")
    return device


def use_threads(count: int | None) -> None:
    """Compute with so many threads on the CPU, in the whole process; None changes nothing."""
    if count is not None:
        torch.set_num_threads(count)


@contextmanager
def float32_products(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Inside, a GPU computes float32 products and convolutions in float32 (IEEE), or with `tf32` in TF32.

    PyTorch's own setting is TF32 for convolutions alone. Other threads wait, since it is the whole process's.
    """
    if device.type == "cpu":
        yield
        return
    with LOCK:
        before = [products.fp32_precision for products in PRODUCTS]
        try:
            for products in PRODUCTS:
                products.fp32_precision = "tf32" if tf32 else "ieee"
            yield
        finally:
            for products, precision in zip(PRODUCTS, before, strict=True):
                products.fp32_precision = precision
