"""The pack compiled ahead of time, built by CMake as it is for users, for one type."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from mrc_edit.kernels import native, ops, pack
from mrc_edit.kernels.group_norm_silu import pack as group_norm_pack
from mrc_edit.kernels.group_norm_silu import reference as group_norm_reference
from mrc_edit.kernels.reward_block import pack as reward_pack
from mrc_edit.kernels.reward_block import reference as reward_reference

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
CUDA_HEADERS = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
HERE = Path(__file__).parent


def run(*command, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)), env=os.environ | environment, capture_output=True, text=True, check=False
    )


def done(*command, **environment) -> str:
    finished = run(*command, **environment)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout


@pytest.fixture(scope="module")
def cmake():
    if not (path := shutil.which("cmake")) or not shutil.which("cc"):
        pytest.skip("needs cmake and a C compiler")
    return path


@pytest.fixture(scope="module")
def built(cmake, tmp_path_factory) -> Path:
    """A folder with the pack."""
    folder = tmp_path_factory.mktemp("pack")
    options = ["-DMRC_PACK=ON", f"-DMRC_PACK_PYTHON={sys.executable}", "-DMRC_PACK_TYPES=float16"]
    done(cmake, "-S", ROOT, "-B", folder, *options)
    done(cmake, "--build", folder, "--target", "mrc_cuda")
    return folder


@pytest.fixture(scope="module")
def fake_driver(cmake, tmp_path_factory) -> Path:
    """A folder with a `libcuda.so.1`."""
    folder = tmp_path_factory.mktemp("driver")
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1", f"-I{CUDA_HEADERS}"]
    done("cc", *flags, HERE / "fake_cuda.c", "-o", folder / "libcuda.so.1")
    return folder


@pytest.fixture(scope="module")
def example(built) -> Path:
    """The C example, compiled against the installed header."""
    include = native.find("libmrc_kernels.so").parent / "include"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{include}", f"-L{built}"]
    source = ROOT / "kernels" / "examples" / "reward_block.c"
    done("cc", *flags, source, f"-Wl,-rpath,{built}", "-lmrc_cuda", "-ldl", "-o", built / "example")
    return built / "example"


@pytest.mark.slow
def test_on_a_fake_gpu(built, fake_driver):
    shutil.copy(fake_driver / "libcuda.so.1", built)
    options = ("-q", "-p", "no:cacheprovider", "-p", "fake_gpu", f"--rootdir={ROOT}", "--import-mode=importlib")
    environment = {
        "MRC_FAKE_GPU": str(built), "TRITON_INTERPRET": "1", "LD_LIBRARY_PATH": str(built), "PYTHONPATH": str(HERE),
    }  # fmt: skip
    try:
        print(done(sys.executable, "-m", "pytest", *options, HERE / "on_fake_gpu.py", **environment))
    finally:
        (built / "libcuda.so.1").unlink()


def test_the_drivers_functions_are_declared_as_in_its_header(cmake, tmp_path):
    include = [f"-I{CUDA_HEADERS}", f"-I{ROOT / 'kernels' / 'csrc'}"]
    done("c++", "-std=c++17", "-Wall", "-Werror", *include, "-c", HERE / "driver_abi.cpp", "-o", tmp_path / "abi.o")


def test_the_example_without_a_driver(example):
    if run("sh", "-c", "ldconfig -p | grep libcuda.so.1").returncode == 0:
        pytest.skip("there is a CUDA driver")
    finished = run(example, LD_LIBRARY_PATH="")
    assert finished.returncode == 2
    assert finished.stderr == "reward_block: no CUDA driver: libcuda.so.1 cannot be loaded\n"


def test_the_example_on_a_driver_that_computes_nothing(example, fake_driver):
    finished = run(example, LD_LIBRARY_PATH=str(fake_driver))
    assert finished.returncode == 1 and finished.stdout == "3932160 of 3932160 values are wrong\n", finished.stderr
    finished = run(example, LD_LIBRARY_PATH=str(fake_driver), FAKE_CAPABILITY="75")
    assert finished.returncode == 2 and "no code for this GPU" in finished.stderr


def test_an_old_driver(example, tmp_path):
    (tmp_path / "old.c").write_text("int cuInit(unsigned flags) { return flags; }\n")
    done("cc", "-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / "libcuda.so.1")
    finished = run(example, LD_LIBRARY_PATH=str(tmp_path))
    assert finished.returncode == 2 and "older than 12.0" in finished.stderr


def test_python_says_why_and_falls_back(built, tmp_path):
    code = """
import sys, warnings
from mrc_edit.kernels import native, pack
native.folders = sys.argv[1:]
print(pack.problem())
with warnings.catch_warnings(record=True) as caught:
    print(pack.ready(), pack.ready(), [str(one.message) for one in caught])
"""
    text = done(sys.executable, "-c", code, built, LD_LIBRARY_PATH="")
    assert "libmrc_cuda.so cannot be used: no CUDA driver" in text
    assert "False False ['libmrc_cuda.so cannot be used: no CUDA driver" in text
    text = done(sys.executable, "-c", code, tmp_path)
    assert text.splitlines() == ["libmrc_cuda.so was not built; docs/kernels.md says how", "False False []"]


def test_building_without_triton(cmake, tmp_path):
    venv.create(tmp_path / "bare")
    python = f"-DMRC_PACK_PYTHON={tmp_path / 'bare' / 'bin' / 'python'}"
    finished = run(cmake, "-S", ROOT, "-B", tmp_path / "auto", python)
    assert finished.returncode == 0
    assert "libmrc_cuda.so is not built" in finished.stderr and "has no torch" in finished.stderr
    finished = run(cmake, "-S", ROOT, "-B", tmp_path / "on", python, "-DMRC_PACK=ON")
    assert finished.returncode and "libmrc_cuda.so cannot be built" in finished.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(built, example, monkeypatch, reward_arguments, wide, relative_error):
    assert run(example).returncode == 0
    monkeypatch.setattr(native, "folders", [str(built)])
    for cached in (pack.library, pack.ready):
        cached.cache_clear()
    for side in (64, 9):
        *args, _ = reward_arguments(3, 320, side, side, dtype=torch.float16, last=True, device="cuda")
        args.append(32)  # groups as released
        assert ops.chosen(args[0]) == "pack"
        actual = reward_pack.reward_block(*args)
        assert relative_error(actual, reward_reference.reward_block(*wide(args))) <= 2e-3
        normed = (args[0], *args[5][:2], 32, 1e-5, args[5][0].repeat(3, 1), True)
        actual = group_norm_pack.group_norm_silu(*normed)
        assert relative_error(actual, group_norm_reference.group_norm_silu(*wide(normed))) <= 2e-3
