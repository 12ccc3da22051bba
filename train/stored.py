"""Arrays and texts of a cache, and the record of a state, checked as they are read: a disk may have damaged them."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import MRCError

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of AdamW


def read_array(path: Path, dtype: type, shape: tuple[int | None, ...], remedy: str) -> np.ndarray:
    """A memory-mapped array of an .npy file.

    Args:
        shape: the length of each dimension; None for any.

    Raises:
        MRCError: no such file, a damaged one, or an array of another type or shape.
    """
    if not path.is_file():
        raise MRCError(f"{path} is missing; {remedy}")
    try:
        array = np.load(path, mmap_mode="r")
        found, lengths = array.dtype, array.shape
    except Exception as error:  # numpy raises many types for damaged headers
        raise MRCError(f"{path} cannot be read ({str(error)[:200]}); {remedy}") from None
    fits = len(lengths) == len(shape) and all(b in (None, a) for a, b in zip(lengths, shape, strict=True))
    if found != dtype or not fits:
        wanted = tuple("any" if length is None else length for length in shape)
        raise MRCError(f"{path} holds {found} {lengths}, not {np.dtype(dtype)} {wanted}; {remedy}")
    return array


def finite_rows(array: np.ndarray, rows: np.ndarray | list[int], what: str, remedy: str) -> Tensor:
    """Rows of a cached array as float32.

    Raises:
        MRCError: one has values that are not finite.
    """
    values = array[rows].astype(np.float32)
    if not np.isfinite(values).all():
        raise MRCError(f"{what} holds values that are not finite; {remedy}")
    return torch.from_numpy(values)


def check_texts(value: object, count: int | None, path: Path, remedy: str, optional: bool = False) -> list:
    """A list of `count` texts; with `optional` some may be None.

    Raises:
        MRCError: something else.
    """
    types = (str, type(None)) if optional else (str,)
    if not isinstance(value, list) or not all(isinstance(text, types) for text in value):
        raise MRCError(f"{path} is damaged: a list of texts is missing or holds something else; {remedy}")
    if count is not None and len(value) != count:
        raise MRCError(f"{path} is damaged: it has {len(value)} texts for {count} rows; {remedy}")
    return value


def check_record(record: dict, step: int, path: Path, remedy: str) -> None:
    """Refuse the state.json of another form, or of another step than its folder's."""
    rows, broken = record.get("curve"), record.get("broken")
    checks = {
        "step": type(record.get("step")) is int and record["step"] == step,
        "config": isinstance(record.get("config"), dict),
        "curve": isinstance(rows, list) and len(rows) == step and all(map(is_point, rows, range(step))),
        "broken": isinstance(broken, list) and all(isinstance(message, str) for message in broken),
        "resized": type(record.get("resized", 0)) is int and record.get("resized", 0) >= 0,
    }
    if damaged := [name for name, right in checks.items() if not right]:
        raise MRCError(f"{path} is damaged: its {', '.join(damaged)} cannot be; {remedy}")


def is_point(row: object, step: int) -> bool:
    """[step, loss, seconds]."""
    if not isinstance(row, list) or len(row) != 3 or not all(type(value) in (int, float) for value in row):
        return False
    return row[0] == step and all(abs(value) < math.inf for value in row)


def check_tensors(tensors: dict[str, Tensor], trained: list[nn.Parameter], step: int) -> None:
    """Refuse a state's tensors unless they are those of the trained parameters, finite and of their shapes and types.

    Raises:
        MRCError: a tensor is missing, unknown, or another.
    """
    moments = {name.split(".")[1] for name in tensors if name.startswith("optimizer.")}
    wanted = {f"{kind}.{i}" for kind in ("weights", "average") for i in range(len(trained))}
    wanted |= {f"optimizer.{i}.{name}" for i in moments for name in MOMENTS}
    faults = [f"{name} is missing" for name in sorted(wanted - tensors.keys())]
    faults += [f"{name} is unknown" for name in sorted(tensors.keys() - wanted)]
    for name in sorted(wanted & tensors.keys()):
        index, tensor = name.split(".")[1], tensors[name]
        if not index.isdecimal() or int(index) >= len(trained):
            faults.append(f"{name} is unknown")
        elif fault := tensor_fault(name, tensor, trained[int(index)], step):
            faults.append(f"{name} {fault}")
    if faults:
        raise MRCError(
            f"state {step:08d} is damaged, or of another model: {'; '.join(faults[:3])}"
            f"{f' and {len(faults) - 3} more' if len(faults) > 3 else ''}; "
            "remove its folder to resume from the state before, or give the --init it was trained from"
        )


def tensor_fault(name: str, tensor: Tensor, parameter: nn.Parameter, step: int) -> str:
    """What is wrong with a tensor that belongs to this parameter; empty if nothing is."""
    if name.endswith(".step"):
        counts = tensor.shape == () and tensor.dtype == torch.float32 and 0 <= float(tensor) <= step
        return "" if counts else "is no number of steps"
    if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
        return f"is {tensor.dtype} {tuple(tensor.shape)}, the parameter {parameter.dtype} {tuple(parameter.shape)}"
    if not bool(torch.isfinite(tensor).all()):
        return "holds values that are not finite"
    return "holds negative squares" if name.endswith(".exp_avg_sq") and bool((tensor < 0).any()) else ""
