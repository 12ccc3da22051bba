"""Cards that are not there: the CPU under the names of others, and the stand-ins beside this file."""

import importlib.machinery
import importlib.util
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnxruntime
import pytest

from mrc_edit.engine.backends import onnxruntime as backend
from mrc_edit.engine.backends import providers

HERE = Path(__file__).parent
CPU = "CPUExecutionProvider"
OPERATORS = ("Conv", "MatMul", "Sigmoid", "Reshape", "Shape", "Gather", "Concat")  # of every graph, as sessions tell
RealSession, RealOptions, RealValue = onnxruntime.InferenceSession, onnxruntime.SessionOptions, onnxruntime.OrtValue


class Card:
    """What the sessions on it were opened with, and what was copied to it and from it.

    Attributes:
        computes: whether sessions can run, on the CPU; most tests look at what they were opened with.
        lost: providers that cannot be loaded; left: operators that the CPU is left with; takes_nothing: of a graph.
        opened: one entry a session; copies: by direction; bound: how often an input was bound, by name.
    """

    def __init__(self) -> None:
        self.computes = False
        self.lost, self.left, self.takes_nothing = set(), set(), False
        self.opened, self.built = [], []
        self.copies, self.bound = Counter(), Counter()
        self.on_card = {}  # by address; values stay, so that no other takes the address


def make_session(card: Card) -> type:
    class Session:
        """A session on the CPU that says it runs on what it was asked for, and writes engines where it is told."""

        def __init__(self, graph, options, listed=None, enable_fallback=1):
            self.providers = dict(listed) if listed else dict(options.added)
            self.options, self.graph = options, graph
            self.falls_back = bool(enable_fallback)
            card.opened.append(self)
            own = self.providers.get(providers.TENSORRT, {})
            if own.get("trt_engine_cache_enable") == "1" and providers.TENSORRT not in card.lost:
                self.build(Path(own["trt_engine_cache_path"]), own)
            if options.context.get("ep.context_enable") == "1":
                options.optimized_model_filepath = options.context["ep.context_file_path"]
                card.built.append(graph)
                if not card.computes:
                    Path(options.optimized_model_filepath).write_bytes(graph)
            if card.computes:
                self.real = RealSession(graph, options, [CPU], enable_fallback=0)

        def build(self, place: Path, own: dict[str, str]) -> None:
            self.found = [path.read_bytes() for path in place.glob("*.engine")]
            if not self.found:
                (place / "graph_sm90.engine").write_bytes(b"engine")
                card.built.append(self.graph)
                if own.get("trt_timing_cache_enable") == "1":
                    timings = Path(own["trt_timing_cache_path"]) / "cache_sm90.timing"
                    timings.write_bytes((timings.read_bytes() if timings.exists() else b"") + b"t")

        def get_providers(self):
            return [name for name in self.providers if name not in card.lost] or [CPU]

        def get_provider_graph_assignment_info(self):
            named = next(iter(self.providers))
            for kind in OPERATORS:
                nodes = [SimpleNamespace(op_type=kind)]
                name = CPU if card.takes_nothing or kind in card.left else named
                yield SimpleNamespace(ep_name=name, get_nodes=lambda nodes=nodes: nodes)

        def io_binding(self):
            return Binding(self.real)

        def run_with_iobinding(self, binding):
            binding.ran()
            self.real.run_with_iobinding(binding.real)

        def get_outputs(self):
            return self.real.get_outputs()

    class Binding:
        def __init__(self, session):
            self.real = session.io_binding()
            self.outputs, self.host_inputs = {}, set()

        def bind_ortvalue_input(self, name, value):
            card.bound[name] += 1
            (self.host_inputs.discard if value.data_ptr() in card.on_card else self.host_inputs.add)(name)
            self.real.bind_ortvalue_input(name, value)

        def bind_input(self, name, device, device_id, kind, shape, address):
            assert device == "cuda"
            card.bound[name] += 1
            self.real.bind_input(name, "cpu", 0, kind, shape, address)

        def bind_output(self, name, device, device_id):
            self.outputs[name] = device
            self.real.bind_output(name, "cpu", 0)

        def bind_ortvalue_output(self, name, value):
            if self.outputs[name] == "cuda":
                card.on_card[value.data_ptr()] = value
            self.real.bind_ortvalue_output(name, value)

        def ran(self):
            """A run copies inputs that lie in memory, and outputs that are wanted there."""
            card.copies["to the card"] += len(self.host_inputs)
            card.copies["to the host"] += sum(device == "cpu" for device in self.outputs.values())

        def get_outputs(self):
            return self.real.get_outputs()

    return Session


def make_values(card: Card) -> type:
    class Values:
        @staticmethod
        def ortvalue_from_numpy(array, device="cpu", device_id=0):
            value = RealValue.ortvalue_from_numpy(array.copy())
            if device == "cuda":
                card.copies["to the card"] += 1
                card.on_card[value.data_ptr()] = value
            return value

    return Values


class Options(RealOptions):
    """Records the providers of a plug-in's devices, and what a graph of engines is to be; the CPU builds none."""

    def __init__(self):
        super().__init__()
        self.added, self.context = {}, {}

    def add_session_config_entry(self, name, value):
        if name.startswith("ep.context_"):
            self.context[name] = value
        else:
            super().add_session_config_entry(name, value)

    def add_provider_for_devices(self, devices, options):
        self.added[devices[0].ep_name] = options

    def add_provider(self, name, options):
        self.added[name] = options


@pytest.fixture
def card(monkeypatch, tmp_path) -> Card:
    """A card for a package of ONNX Runtime with the TensorRT and CUDA providers, and an empty cache."""
    card = Card()
    available = [providers.TENSORRT, providers.CUDA, CPU]
    monkeypatch.setenv("MRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcufft"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", make_session(card))
    monkeypatch.setattr(backend, "OrtValue", make_values(card))
    monkeypatch.setattr(backend, "SessionOptions", Options)
    return card


@pytest.fixture
def computing_card(card) -> Card:
    card.computes = True
    return card


@pytest.fixture
def plugged(card, monkeypatch):
    """Beside it, ONNX Runtime for CPUs with TensorRT for RTX as a plug-in that is registered already."""
    device = SimpleNamespace(
        ep_name=providers.RTX,
        ep_metadata={"version": "1"},
        device=SimpleNamespace(vendor_id=0x10DE),
        memory_info=lambda kind: object(),
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [device])
    return device


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
