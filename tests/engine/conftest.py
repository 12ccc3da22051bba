"""A GPU and TensorRT that tests can do without."""

import importlib.machinery
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

HERE = Path(__file__).parent


def beside(name: str) -> ModuleType:
    """The module in the file of that name here."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stand_ins() -> SimpleNamespace:
    """The modules `fake_cuda` and `fake_tensorrt`."""
    return SimpleNamespace(cuda=beside("fake_cuda"), tensorrt=beside("fake_tensorrt"))


@pytest.fixture(scope="module")
def on_a_fake_gpu(stand_ins, tmp_path_factory):
    """`on_a_fake_gpu(flavour)`: from here on a GPU, a pack and TensorRT of that flavour are there; TensorRT is the
    installed one if `real`."""
    from mrc_edit.engine.backends import cuda, tensorrt, tensorrt_library
    from mrc_edit.kernels import pack

    patch = pytest.MonkeyPatch()
    patch.setenv("MRC_CACHE", str(tmp_path_factory.mktemp("cache")))

    def install(flavour: str, real: bool = False) -> SimpleNamespace:
        driver = stand_ins.cuda.FakeDriver()
        trt = stand_ins.tensorrt.FakeTensorRT(driver, flavour)
        library = stand_ins.tensorrt.FakePack(driver)
        parent = ModuleType("cuda")
        parent.__spec__ = importlib.machinery.ModuleSpec("cuda", None, is_package=True)
        patch.setitem(sys.modules, "cuda", parent)
        patch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
        patch.setattr(tensorrt, "load_tensorrt", tensorrt_library.load_tensorrt if real else lambda _: trt)
        patch.setattr(pack, "library", lambda: library)
        patch.setattr(pack, "ready", lambda: library.status == 0)
        cuda.device.cache_clear()
        return SimpleNamespace(driver=driver, trt=trt, pack=library)

    yield install
    patch.undo()
    cuda.device.cache_clear()


@pytest.fixture(scope="session")
def engine_export(stand_ins, tmp_path_factory):
    """`engine_export(folder, flavour)`: a copy of an export with stand-in engines."""

    def make(folder: Path, flavour: str, **options) -> Path:
        copy = shutil.copytree(folder, tmp_path_factory.mktemp(flavour) / "exported")
        return stand_ins.tensorrt.add_engines(copy, folder, flavour, **options)

    return make
