"""A pytest plugin for on_fake_gpu.py: fixtures that listen to the fake driver (fake_cuda.c).

`MRC_FAKE_GPU` is the folder of the built pack and the driver.
"""

import ctypes
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mrc_edit.kernels import native
from mrc_edit.kernels.build_pack import contents
from mrc_edit.kernels.cubins import ARCHITECTURES, Specialization, tool

FOLDER = Path(os.environ["MRC_FAKE_GPU"])
FAKE = ctypes.CDLL(str(FOLDER / "libcuda.so.1"))  # loaded before the pack, which looks for this name
LISTENER = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip
STREAM = 0x70
HALF = torch.float16  # the only type of the pack that is tested
MEMORY = {"*fp16": torch.float16, "*fp32": torch.float32, "*i64": torch.int64}
TABLE = [(sm, specialization) for sm in ARCHITECTURES for specialization in contents(HALF, sm)]


@dataclass
class Launch:
    architecture: int
    specialization: Specialization
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    allowed: int
    stream: int
    arguments: dict[str, Any]  # of the Triton kernel, pointers as addresses


@cache
def images() -> list[bytes]:
    """The cubins in the order of the table."""
    blob = (FOLDER / "pack" / "cubins.bin").read_bytes()
    rows = (FOLDER / "pack" / "cubins.inc").read_text()
    starts = [int(start) for start in re.findall(r", (\d+)\},$", rows, re.MULTILINE)]
    assert len(starts) == len(TABLE)
    return [blob[start:end] for start, end in zip(starts, [*starts[1:], len(blob)], strict=True)]


@cache
def described(row: int) -> tuple[int, list[int]]:
    """SM version and sizes of the parameters, as NVIDIA's tool reads them in the cubin."""
    path = FOLDER / "image.cubin"
    path.write_bytes(images()[row])
    text = tool("cuobjdump", "-elf", str(path))
    parameters = re.findall(r"Ordinal : 0x(\w+)\s+Offset\s+: 0x(\w+)\s+Size\s+: 0x(\w+)", text)
    sizes = [int(size, 16) for _, _, size in sorted(parameters, key=lambda row: int(row[0], 16))]
    return int(re.search(r"\bsm=(\d+)", text)[1]), sizes


def read(image: int, numbers, stream: int | None, parameters) -> Launch:
    """A launch with its parameters, whose number and sizes must be those that the cubin states."""
    row = next(i for i, cubin in enumerate(images()) if ctypes.string_at(image, len(cubin)) == cubin)
    architecture, specialization = TABLE[row]
    sm, sizes = described(row)
    assert sm == architecture
    names = [name for name in specialization.kernel.arg_names if name in specialization.types]
    assert len(sizes) == len(names) + 2
    kinds = [specialization.types[name] for name in names]
    assert sizes == [8 if kind[0] == "*" else 4 for kind in kinds] + [8, 8]
    forms = [ctypes.c_uint64 if kind[0] == "*" else ctypes.c_float if kind == "fp32" else ctypes.c_int32
             for kind in kinds]  # fmt: skip
    values = [
        form.from_address(parameters[i]).value for i, form in enumerate([*forms, ctypes.c_uint64, ctypes.c_uint64])
    ]
    assert values[-2:] == [0, 0]  # scratch memory and profiler, unused
    return Launch(
        architecture, specialization, tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6], numbers[7], stream or 0,
        dict(zip(names, values, strict=False)),
    )  # fmt: skip


def interpret(launch: Launch) -> None:
    """Compute a launch with the arguments at their recorded addresses."""

    def memory(address: int, kind: str) -> torch.Tensor:
        return torch.frombuffer((ctypes.c_char * 16).from_address(address), dtype=MEMORY[kind])

    specialization = launch.specialization
    arguments = {name: memory(value, specialization.types[name]) if specialization.types[name][0] == "*" else value
                 for name, value in launch.arguments.items()}  # fmt: skip
    specialization.kernel[launch.grid](**arguments, **specialization.constants)


@pytest.fixture
def gpu():
    """Sets the fake driver: capability, device, the function that fails and its error, and gives its loads."""

    def configure(**settings):
        for name, value in settings.items():
            if name == "failing":
                (ctypes.c_char * 64).in_dll(FAKE, "fake_failing").value = value.encode()
            else:
                ctypes.c_int.in_dll(FAKE, f"fake_{name}").value = value
        return ctypes.c_int.in_dll(FAKE, "fake_loads").value

    configure(capability=80, device=0, error=0, failing="", loads=0)
    return configure


@pytest.fixture
def launches(monkeypatch, gpu):
    """The launches so far. Triton's interpreter computes each one, so that a test can check the results."""
    monkeypatch.setattr(native, "folders", [str(FOLDER)])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    launched, failures = [], []

    def listen(image, function, numbers, stream, parameters):
        try:
            launch = read(image, numbers, stream, parameters)
            assert launch.specialization.kernel.__name__ == function.decode()
            launched.append(launch)
            interpret(launch)
        except BaseException as failure:
            failures.append(failure)

    listener = LISTENER(listen)  # ctypes frees what has no name
    pointer = LISTENER.in_dll(FAKE, "fake_listener")
    ctypes.memmove(ctypes.addressof(pointer), ctypes.addressof(listener), ctypes.sizeof(ctypes.c_void_p))
    yield launched
    ctypes.memset(ctypes.addressof(pointer), 0, ctypes.sizeof(ctypes.c_void_p))
    if failures:
        raise failures[0]
