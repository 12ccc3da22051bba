"""The pack on a driver without a GPU (fake_cuda.c): every launch is held against what the cubin says it takes
and then computed by Triton's interpreter, which shows that the right arguments stand in the right places.

test_pack.py runs this file in a process of its own, as the fake driver must be no other test's;
`MRC_FAKE_GPU` is the folder of the built pack and the driver.
"""

import ctypes
import os
import re
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.kernels import native, ops, pack
from mrc_edit.kernels.build_pack import packed
from mrc_edit.kernels.cubins import ARCHITECTURES, Specialization, tool
from mrc_edit.kernels.group_norm_silu import pack as group_norm_pack
from mrc_edit.kernels.group_norm_silu import reference as group_norm_reference
from mrc_edit.kernels.guided_step import pack as guided_pack
from mrc_edit.kernels.guided_step.reference import guided_step as reference_step
from mrc_edit.kernels.reward_block import pack as reward_pack
from mrc_edit.kernels.reward_block import reference as reward_reference

FOLDER = Path(os.environ["MRC_FAKE_GPU"])
FAKE = ctypes.CDLL(str(FOLDER / "libcuda.so.1"))  # by its name the pack finds it loaded
LISTENER = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip
STREAM = 0x70
HALF = torch.float16  # the only type of the pack that is tested
MEMORY = {"*fp16": torch.float16, "*fp32": torch.float32, "*i64": torch.int64}
IN_TABLE = [(sm, of) for sm in ARCHITECTURES for of in packed(HALF, sm)]


@dataclass
class Launch:
    architecture: int
    of: Specialization
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
    assert len(starts) == len(IN_TABLE)
    return [blob[start:end] for start, end in zip(starts, [*starts[1:], len(blob)], strict=True)]


@cache
def described(row: int) -> tuple[int, list[int]]:
    """SM version and sizes of the parameters, as NVIDIA's tool reads them in the cubin."""
    path = FOLDER / "image.cubin"
    path.write_bytes(images()[row])
    text = tool("cuobjdump", "-elf", str(path))
    found = re.findall(r"Ordinal : 0x(\w+)\s+Offset\s+: 0x(\w+)\s+Size\s+: 0x(\w+)", text)
    sizes = [int(size, 16) for _, _, size in sorted(found, key=lambda one: int(one[0], 16))]
    return int(re.search(r"\bsm=(\d+)", text)[1]), sizes


def read(image: int, numbers, stream: int | None, parameters) -> Launch:
    row = next(i for i, known in enumerate(images()) if ctypes.string_at(image, len(known)) == known)
    architecture, of = IN_TABLE[row]
    sm, sizes = described(row)
    assert sm == architecture
    names = [name for name in of.kernel.arg_names if name in of.types]
    assert len(sizes) == len(names) + 2
    kinds = [of.types[name] for name in names]
    assert sizes == [8 if kind[0] == "*" else 4 for kind in kinds] + [8, 8]
    forms = [ctypes.c_uint64 if kind[0] == "*" else ctypes.c_float if kind == "fp32" else ctypes.c_int32
             for kind in kinds]  # fmt: skip
    values = [
        form.from_address(parameters[i]).value for i, form in enumerate([*forms, ctypes.c_uint64, ctypes.c_uint64])
    ]
    assert values[-2:] == [0, 0]  # scratch memory and profiler, unused
    return Launch(
        architecture, of, tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6], numbers[7], stream or 0,
        dict(zip(names, values, strict=False)),
    )  # fmt: skip


def interpret(launch: Launch) -> None:
    def memory(address: int, kind: str) -> torch.Tensor:
        return torch.frombuffer((ctypes.c_char * 16).from_address(address), dtype=MEMORY[kind])

    of = launch.of
    arguments = {name: memory(value, of.types[name]) if of.types[name][0] == "*" else value
                 for name, value in launch.arguments.items()}  # fmt: skip
    of.kernel[launch.grid](**arguments, **of.constants)


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
    """The launches so far; each is also computed, so that results are there to be compared."""
    monkeypatch.setattr(native, "folders", [str(FOLDER)])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    made, failures = [], []

    def listen(image, function, numbers, stream, parameters):
        try:
            launch = read(image, numbers, stream, parameters)
            assert launch.of.kernel.__name__ == function.decode()
            made.append(launch)
            interpret(launch)
        except BaseException as failure:
            failures.append(failure)

    kept = LISTENER(listen)
    pointer = LISTENER.in_dll(FAKE, "fake_listener")
    ctypes.memmove(ctypes.addressof(pointer), ctypes.addressof(kept), ctypes.sizeof(ctypes.c_void_p))
    yield made
    ctypes.memset(ctypes.addressof(pointer), 0, ctypes.sizeof(ctypes.c_void_p))
    if failures:
        raise failures[0]


def feature_map(count, channels, height, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    hidden = 2 * torch.randn(count, channels, height, width, generator=random) - 1
    weight, bias = torch.randn(2, channels, generator=random).to(HALF)
    return hidden.to(HALF).contiguous(memory_format=torch.channels_last), weight, bias


@pytest.mark.parametrize(("channels", "side"), [(320, 9), (32, 5)])
@pytest.mark.parametrize("capability", [80, 90])  # of other tilings
def test_reward_block(launches, gpu, wide, relative_error, reward_arguments, channels, side, capability):
    gpu(capability=capability)
    *args, _ = reward_arguments(2, channels, side, side, dtype=HALF, last=True)
    args.append(32)  # groups as released
    found = reward_pack.reward_block(*args)
    assert found.stride() == args[0].stride()
    assert relative_error(found, reward_reference.reward_block(*wide(args))) <= 2e-3
    statistics, block = launches
    assert statistics.grid == (2 * args[-1], 1, 1)
    assert block.grid == (-(-side * side // block.of.constants["TILE"]), 2, 1)
    assert block.arguments["hidden"] == args[0].data_ptr() and block.arguments["output"] == found.data_ptr()
    for launch in launches:
        assert launch.architecture == capability and launch.stream == STREAM
        assert launch.block == (256, 1, 1) and 0 < launch.shared <= launch.allowed
    assert [launch.arguments["eps"] for launch in launches] == pytest.approx([1e-6, 1e-12], rel=1e-6)
    assert capability != 90 or channels != 320 or block.shared > 48 << 10


@pytest.mark.parametrize("channels", [32, 320, 960, 2560])  # 1, 10, 30, 80 a group
@pytest.mark.parametrize("offset", [False, True])
def test_group_norm_silu(launches, wide, relative_error, channels, offset):
    hidden, weight, bias = feature_map(2, channels, 3, 5)
    args = (hidden, weight, bias, 32, 1e-5, weight.repeat(2, 1) if offset else None, True)
    found = group_norm_pack.group_norm_silu(*args)
    assert relative_error(found, group_norm_reference.group_norm_silu(*wide(args))) <= 2e-3
    (launch,) = launches
    assert launch.grid == (64, 1, 1) and launch.arguments["eps"] == pytest.approx(1e-5)
    assert launch.of.constants["HAS_OFFSET"] == offset
    assert channels // 32 <= launch.of.constants["WIDTH"] < max(17, channels // 16)  # the least that holds a group


@pytest.mark.parametrize("fresh", [False, True])
def test_guided_step(launches, relative_error, fresh):
    random = torch.Generator().manual_seed(0)

    def normal(*dims):
        return torch.randn(dims, generator=random)

    noise, sample = normal(6, 4, 18, 16).to(HALF), normal(4, 8, 18, 16).to(HALF)
    latents, data, added = normal(2, 4, 18, 16), normal(2, 4, 18, 16), normal(2, 4, 18, 16) if fresh else None
    tables = normal(3, 4), normal(3, 2), normal(3, 1)  # a row a step, most at no multiple of 16 bytes
    item = torch.tensor([0, 1, 1, 0])
    settings = (normal(2, 6) * 5, latents, data, added, *(table[1] for table in tables))
    wide = [None if tensor is None else tensor.double().numpy() for tensor in (noise, *settings[:-1])]
    expected = reference_step(*wide, settings[-1].item(), item.numpy(), sample.double().numpy())
    sample[:, :4] = torch.nan
    guided_pack.guided_step(noise, *settings, item, sample)
    for found, truth, most in zip((latents, data, sample), expected, (1e-5, 1e-5, 2e-3), strict=True):
        assert relative_error(found, torch.from_numpy(truth)) <= most
    assert launches[0].grid == (2, 2, 1) and launches[0].block == (128, 1, 1)  # 1152 values an image, two images


@pytest.mark.parametrize(
    ("capability", "code"),
    [(80, 80), (86, 86), (89, 89), (90, 90), (120, 120),
     (87, 86),  # code for a lesser minor version runs too
     (75, None), (100, None),  # another major version
     (121, None)],  # code for 12.0, which uses what that alone has, does not
)  # fmt: skip
def test_the_code_is_the_gpus(launches, gpu, capability, code):
    gpu(capability=capability)
    hidden, weight, bias = feature_map(1, 32, 2, 2)
    if code is None:
        with pytest.raises(pack.NotInPack, match="no code for this GPU"):
            group_norm_pack.group_norm_silu(hidden, weight, bias, 8, 1e-5, None, True)
        assert not launches
    else:
        group_norm_pack.group_norm_silu(hidden, weight, bias, 8, 1e-5, None, True)
        assert launches[0].architecture == code


@pytest.mark.parametrize(
    ("device", "function"),  # on each device nothing was loaded before
    [(1, "cuCtxGetDevice"), (2, "cuDeviceGetAttribute"), (3, "cuLibraryLoadData"), (4, "cuLibraryGetKernel"),
     (5, "cuKernelSetAttribute"), (6, "cuLaunchKernel")],
)  # fmt: skip
def test_errors_of_the_driver_are_told_and_not_kept(launches, gpu, device, function):
    hidden, weight, bias = feature_map(1, 32, 2, 2)
    gpu(device=device, failing=function, error=209)
    with pytest.raises(MRCError, match="returned 1209: no kernel image for the device") as raised:
        group_norm_pack.group_norm_silu(hidden, weight, bias, 8, 1e-5, None, True)
    assert not isinstance(raised.value, pack.NotInPack) and not launches
    gpu(failing="")
    group_norm_pack.group_norm_silu(hidden, weight, bias, 8, 1e-5, None, True)
    assert len(launches) == 1


def test_without_a_context(launches, gpu):
    gpu(failing="cuCtxGetDevice", error=201)
    hidden, weight, bias = feature_map(1, 32, 2, 2)
    with pytest.raises(MRCError, match="no CUDA context"):
        group_norm_pack.group_norm_silu(hidden, weight, bias, 8, 1e-5, None, True)


def test_code_is_loaded_once_a_device(gpu):
    library = ctypes.CDLL(str(FOLDER / "libmrc_cuda.so"))
    hidden, weight, bias = feature_map(1, 32, 2, 2)
    maps = ctypes.byref(pack.feature_maps(hidden, torch.empty_like(hidden), 8, 1e-5, weight, bias))
    gpu(device=77)
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(library.mrc_cuda_group_norm_silu(maps, None, None)))
               for _ in range(8)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 8 and gpu() == 1
    gpu(device=78)
    assert library.mrc_cuda_group_norm_silu(maps, None, None) == 0 and gpu() == 2


def test_what_the_pack_has_not_is_left_to_others(launches, wide, reward_arguments):
    for channels, dtype, last in ((64, HALF, True), (32, torch.bfloat16, True), (32, HALF, False)):
        with pytest.raises(pack.NotInPack):
            reward_pack.reward_block(*reward_arguments(1, channels, 2, 2, dtype=dtype, last=last))
    hidden, weight, bias = feature_map(1, 32, 2, 2)
    elsewhere = torch.cat([weight[:1], weight])[1:]  # at no multiple of 16 bytes
    for args in (
        (hidden, elsewhere, bias, 8, 1e-5, None, True),
        (hidden, weight, bias, 8, 1e-5, None, False),  # no SiLU
        (hidden, weight.float(), bias.float(), 8, 1e-5, None, True),
        (*feature_map(1, 40, 2, 2), 8, 1e-5, None, True),  # channels no multiple of 16
        (*feature_map(1, 1040, 2, 2), 8, 1e-5, None, True),  # 130 channels a group
    ):
        with pytest.raises(pack.NotInPack):
            group_norm_pack.group_norm_silu(*args)
    assert not launches


def test_the_operators_fall_back(launches, monkeypatch, reward_arguments):
    assert pack.problem() is None and pack.ready()
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=HALF, numel=lambda: 1)
    assert ops.chosen(on_gpu) == "pack" and ops.chosen(on_gpu, packed=False) == "triton_kernel"
    with ops.reference_kernels():
        assert ops.chosen(on_gpu) == "reference"
    monkeypatch.setattr(ops, "chosen", lambda hidden, fits=True, packed=True: "pack" if packed else "reference")
    for last, count in ((True, 2), (False, 0)):
        args = reward_arguments(1, 32, 3, 3, dtype=HALF, last=last)
        torch.testing.assert_close(ops.reward_block(*args), reward_reference.reward_block(*args), rtol=0.02, atol=0.02)
        assert len(launches) == count
        launches.clear()


def test_what_does_not_fit_is_refused(gpu):
    library = ctypes.CDLL(str(FOLDER / "libmrc_cuda.so"))
    hidden = torch.zeros(4096)
    data = hidden.data_ptr()
    pointers = dict.fromkeys(("input", "scale", "shift"), data) | {"output": data + 4096}
    sizes = {"count": 1, "channels": 32, "positions": 4, "groups": 8, "type": 1}

    def reward(other=data, **changed):
        maps = pack.FeatureMaps(**(pointers | sizes | changed), epsilon=1e-6)
        weights = (ctypes.c_void_p * 12)(*[data] * 12)
        return library.mrc_cuda_reward_block(
            ctypes.byref(maps), ctypes.byref(weights), *map(ctypes.c_void_p, [data, data, data, data, other]), None
        )

    assert reward() == 0
    for changed in (
        {"channels": 33}, {"groups": 5}, {"groups": 0}, {"positions": 0}, {"count": 0}, {"type": 3}, {"type": -1},
        {"positions": 2**31}, {"positions": 2**62}, {"count": 2**62}, {"count": 65536},
    ):  # fmt: skip
        assert reward(**changed) == 1, changed
    assert reward(input=None) == reward(other=None) == 2
    assert reward(input=data + 8) == reward(other=data + 8) == reward(output=data) == 17

    def guided(**changed):
        values = {
            "type": 1, "noise": data, "guidance": data, "rows": 1, "latents": data, "data": data, "fresh": data,
            "batch": 1, "size": 64, "coefficients": data, "data_coefficients": data, "input_scale": data, "item": data,
            "inputs": 1, "sample": data,
        } | changed  # fmt: skip
        plain = {"type": ctypes.c_int32} | dict.fromkeys(("rows", "batch", "size", "inputs"), ctypes.c_int64)
        return library.mrc_cuda_guided_step(*(plain.get(n, ctypes.c_void_p)(v) for n, v in values.items()), None)

    assert guided() == guided(fresh=None) == guided(item=data + 8) == 0
    for changed in (
        {"size": 0}, {"batch": 0}, {"batch": 65536}, {"rows": -1}, {"inputs": 2**62}, {"rows": 2**26}, {"type": 3}
    ):  # fmt: skip
        assert guided(**changed) == 1, changed
    assert guided(size=40) == 16 and guided(noise=None) == 2 and guided(latents=data + 4) == 17
    library.mrc_cuda_error_string.restype = ctypes.c_char_p
    texts = [library.mrc_cuda_error_string(code) for code in (0, 1, 2, 16, 17, 18, 19, 20, 1209)]
    assert len(set(texts)) == 9 and b"unknown" not in texts
    assert library.mrc_cuda_error_string(21) == b"unknown"
