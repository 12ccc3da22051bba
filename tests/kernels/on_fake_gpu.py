"""The pack on a driver without a GPU (fake_cuda.c).

Every launch must pass the parameters that its cubin states. Triton's interpreter then computes the launch, which
shows that every argument is in its place.

test_pack.py runs this file in a process of its own, with the plugin fake_gpu.py: no other test may see the fake driver.
"""

import ctypes
import threading
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import FOLDER, HALF, STREAM

from mrc_edit.core.errors import MRCError
from mrc_edit.kernels import ops, pack
from mrc_edit.kernels.feature_maps import FLOATS, FeatureMaps, feature_maps
from mrc_edit.kernels.group_norm_silu import pack as group_norm_pack
from mrc_edit.kernels.group_norm_silu import reference as group_norm_reference
from mrc_edit.kernels.reward_block import pack as reward_pack
from mrc_edit.kernels.reward_block import reference as reward_reference
from mrc_edit.kernels.sampler_step import addresses
from mrc_edit.kernels.sampler_step import pack as sampler_pack
from mrc_edit.kernels.sampler_step import reference as sampler_reference


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
    actual = reward_pack.reward_block(*args)
    assert actual.stride() == args[0].stride()
    assert relative_error(actual, reward_reference.reward_block(*wide(args))) <= 2e-3
    statistics, block = launches
    assert statistics.grid == (2 * args[-1], 1, 1)
    assert block.grid == (-(-side * side // block.specialization.constants["TILE"]), 2, 1)
    assert block.arguments["hidden"] == args[0].data_ptr() and block.arguments["output"] == actual.data_ptr()
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
    actual = group_norm_pack.group_norm_silu(*args)
    assert relative_error(actual, group_norm_reference.group_norm_silu(*wide(args))) <= 2e-3
    (launch,) = launches
    assert launch.grid == (64, 1, 1) and launch.arguments["eps"] == pytest.approx(1e-5)
    assert launch.specialization.constants["HAS_OFFSET"] == offset
    assert (
        channels // 32 <= launch.specialization.constants["WIDTH"] < max(17, channels // 16)
    )  # the narrowest that has room for a group


@pytest.mark.parametrize("fresh_noise", [False, True])
def test_sampler_step(launches, relative_error, step_arguments, fresh_noise):
    args = step_arguments(2, 4, 18, 16, fresh_noise, dtype=HALF)
    rows = [torch.stack([tensor, tensor, tensor]) for tensor in args[4:7]]
    args[4:7] = (table[1] for table in rows)  # a row a step, most at no multiple of 16 bytes
    wide = [tensor.double() if tensor is not None and tensor.is_floating_point() else tensor for tensor in args]
    sampler_reference.sampler_step(*wide)
    args[-1][:, :4] = torch.nan
    sampler_pack.sampler_step(*args)
    for i, tolerance in ((1, 1e-5), (2, 1e-5), (8, 2e-3)):
        assert relative_error(args[i], wide[i]) <= tolerance
    assert launches[0].grid == (2, 2, 1) and launches[0].block == (128, 1, 1)  # 1152 values an image, two images


@pytest.mark.parametrize("fresh_noise", [False, True])
def test_sampler_step_on_addresses(launches, relative_error, step_arguments, fresh_noise):
    """As runtimes without PyTorch call it."""
    args = step_arguments(2, 4, 18, 16, fresh_noise, dtype=HALF)
    wide = [tensor.double() if tensor is not None and tensor.is_floating_point() else tensor for tensor in args]
    sampler_reference.sampler_step(*wide)
    noise, latents, denoised, fresh, coefficients, of_denoised, scale, item, sample = (
        None if tensor is None else tensor.data_ptr() for tensor in args
    )
    addresses.sampler_step(
        FLOATS[HALF].code, noise, latents, denoised, fresh, 2, 4 * 18 * 16, coefficients, of_denoised, scale, item,
        len(args[-1]), sample, STREAM,
    )  # fmt: skip
    for i, tolerance in ((1, 1e-5), (2, 1e-5), (8, 2e-3)):
        assert relative_error(args[i], wide[i]) <= tolerance
    assert launches[0].stream == STREAM


@pytest.mark.parametrize(
    ("capability", "code"),
    [(80, 80), (86, 86), (89, 89), (90, 90), (120, 120),
     (87, 86),  # code for a lesser minor version runs too
     (75, None), (100, None),  # another major version
     (121, None)],  # code for 12.0, which uses what that alone has, does not
)  # fmt: skip
def test_the_code_fits_the_gpu(launches, gpu, capability, code):
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
def test_an_error_of_the_driver_is_raised_and_not_remembered(launches, gpu, device, function):
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
    maps = ctypes.byref(feature_maps(hidden, torch.empty_like(hidden), 8, 1e-5, weight, bias))
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


def test_the_pack_declines_what_it_has_no_kernel_for(launches, wide, reward_arguments):
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


def test_wrong_sizes_and_pointers_are_refused(gpu):
    library = ctypes.CDLL(str(FOLDER / "libmrc_cuda.so"))
    hidden = torch.zeros(4096)
    data = hidden.data_ptr()
    pointers = dict.fromkeys(("input", "scale", "shift"), data) | {"output": data + 4096}
    sizes = {"count": 1, "channels": 32, "positions": 4, "groups": 8, "type": 1, "channels_last": 1}

    def reward(other=data, **changed):
        maps = FeatureMaps(**(pointers | sizes | changed), epsilon=1e-6)
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
    assert reward(channels_last=0) == 16
    assert reward(input=None) == reward(other=None) == 2
    assert reward(input=data + 8) == reward(other=data + 8) == reward(output=data) == 17

    def step(**changed):
        values = {
            "type": 1, "noise": data, "latents": data, "denoised": data, "fresh_noise": data, "batch": 1, "size": 64,
            "coefficients": data, "denoised_coefficients": data, "input_scale": data, "item": data, "inputs": 1,
            "sample": data,
        } | changed  # fmt: skip
        plain = {"type": ctypes.c_int32} | dict.fromkeys(("batch", "size", "inputs"), ctypes.c_int64)
        return library.mrc_cuda_sampler_step(*(plain.get(n, ctypes.c_void_p)(v) for n, v in values.items()), None)

    assert step() == step(fresh_noise=None) == step(item=data + 8) == 0
    for changed in (
        {"size": 0}, {"batch": 0}, {"batch": 65536}, {"inputs": -1}, {"inputs": 2**62}, {"size": 2**31}, {"type": 3}
    ):  # fmt: skip
        assert step(**changed) == 1, changed
    assert step(size=40) == 16 and step(noise=None) == 2 and step(latents=data + 4) == 17
    library.mrc_cuda_error_string.restype = ctypes.c_char_p
    texts = [library.mrc_cuda_error_string(code) for code in (0, 1, 2, 16, 17, 18, 19, 20, 1209)]
    assert len(set(texts)) == 9 and b"unknown" not in texts
    assert library.mrc_cuda_error_string(21) == b"unknown"
