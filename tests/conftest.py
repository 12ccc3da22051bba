"""Shared models and their exports, each made once a run.

`MRC_REFERENCE` names the folder of golden data; tests that need it skip without.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

# Read when OpenMP is loaded, here and in child processes. A thread that waits would otherwise spin, and take the core
# from a thread of another runtime or process that it waits for: training steps then take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported

ROOT = Path(__file__).parents[1]
REFERENCE = Path(os.environ.get("MRC_REFERENCE", ROOT.parent / "shared" / "reference"))


@pytest.fixture(scope="session")
def reference() -> Path:
    if not (REFERENCE / "unet_slim.npz").is_file():
        pytest.skip(f"no golden data at {REFERENCE}; set MRC_REFERENCE to its folder")
    return REFERENCE


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A seeded 1 M-parameter checkpoint folder."""
    from mrc_edit.model import save_checkpoint
    from mrc_edit.model.seeded import seeded_checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_checkpoint(seeded_checkpoint(), folder)
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory, request):
    """`once(name, make)`: a folder that all processes of a test run share; the first that asks calls `make(folder)`."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base  # workers of pytest-xdist

    def folder(name: str, make) -> Path:
        path, whole = shared / "once" / name, shared / "once" / f"{name}.whole"
        path.parent.mkdir(exist_ok=True)
        with path.with_name(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                make(path)
                whole.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def traced_once(once):
    """From here on each graph of a model is traced once a run: tracing is most of an export."""
    from mrc_edit.engine.graphs import GRAPHS, shapes
    from mrc_edit.engine.manifest import Artifact
    from mrc_edit.export import stages
    from mrc_edit.export.options import OPSET
    from mrc_edit.export.trace import constants, described

    trace, monkeypatch = stages.trace, pytest.MonkeyPatch()

    def trace_once(checkpoint, graph, precision, out, path, wider=(), opset=OPSET):
        unet, part = checkpoint.unet, getattr(checkpoint, GRAPHS[graph].part)
        sides = shapes(graph, unet.rewards, unet.feature_bias, unet.embeds_guidance)
        config = part.config.to_dict() if hasattr(part.config, "to_dict") else part.config
        settings = {key: value for key, value in config.items() if key[0] != "_" and key != "dtype"}  # not of its files
        arrays = [described(side, constants(checkpoint)) for side in sides]
        words = opset, sorted(wider), settings, arrays
        digest = hashlib.sha256(repr(words).encode())
        for name, value in part.state_dict().items():
            digest.update(f"{name} {value.dtype}".encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes())

        def make(folder):
            artifact = trace(checkpoint, graph, precision, folder, path, wider, opset)
            (folder / "artifact.json").write_text(json.dumps(asdict(artifact)))

        copy = once("-".join((graph, precision, digest.hexdigest()[:16], path.replace("/", "-"))), make)
        shutil.copytree((copy / path).parent, (out / path).parent)
        return Artifact(**json.loads((copy / "artifact.json").read_text()))

    monkeypatch.setattr(stages, "trace", trace_once)
    yield
    monkeypatch.undo()


@pytest.fixture(scope="session")
def tiny_export(tiny, traced_once, once) -> Path:
    from mrc_edit.export.exporter import export

    return once("exported", lambda folder: export(tiny, folder))


@pytest.fixture(scope="session")
def blocks(tmp_path_factory) -> Path:
    """The same with a reward layer after every block."""
    from mrc_edit.model import save_checkpoint
    from mrc_edit.model.extend import add_reward_blocks
    from mrc_edit.model.seeded import seeded, seeded_checkpoint

    checkpoint = seeded_checkpoint()
    folder = tmp_path_factory.mktemp("blocks") / "checkpoint"
    save_checkpoint(replace(checkpoint, unet=seeded(add_reward_blocks(checkpoint.unet))), folder)
    return folder


@pytest.fixture(scope="session")
def blocks_export(blocks, traced_once, once) -> Path:
    from mrc_edit.export.exporter import export

    return once("exported-blocks", lambda folder: export(blocks, folder))


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """The same without rewards: a plain InstructPix2Pix checkpoint."""
    from mrc_edit.model import save_checkpoint
    from mrc_edit.model.seeded import seeded_checkpoint

    folder = tmp_path_factory.mktemp("plain") / "checkpoint"
    save_checkpoint(seeded_checkpoint(rewards=False), folder)
    return folder


@pytest.fixture(scope="session")
def plain_export(plain, traced_once, once) -> Path:
    from mrc_edit.export.exporter import export

    return once("exported-plain", lambda folder: export(plain, folder))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder to calibrate int8 on: two pictures and the instructions of one."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        coarse = np.random.RandomState(i).randint(0, 256, (6, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 96)).save(folder / f"{i}.png")
    (folder / "texts.json").write_text(json.dumps({"0.png": ["1. Style: make it a sketch", "2. Add: a dog"]}))
    return folder


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    """The same as a distilled student, with seeded weights where guidance enters."""
    from diffusers import LCMScheduler

    from mrc_edit.core.defaults import Defaults
    from mrc_edit.model import save_checkpoint
    from mrc_edit.model.scheduler import scheduler_config
    from mrc_edit.model.seeded import seeded, seeded_checkpoint

    checkpoint = seeded_checkpoint()
    checkpoint.unet.embed_guidance()
    seeded(checkpoint.unet)
    scheduler = LCMScheduler.from_config(scheduler_config(checkpoint.scheduler))
    defaults = Defaults("lcm", 4, 7.5, 1.5, guidance_limit=10.0, image_guidance_limit=2.5)
    folder = tmp_path_factory.mktemp("student") / "checkpoint"
    save_checkpoint(replace(checkpoint, scheduler=scheduler, defaults=defaults), folder)
    return folder


@pytest.fixture(scope="session")
def student_export(student, traced_once, once) -> Path:
    from mrc_edit.export.exporter import export

    return once("exported-student", lambda folder: export(student, folder))


# With what is installed here of int8 and TensorRT for RTX; tests of these skip without
ENGINES = {
    "trt": importlib.util.find_spec("tensorrt_rtx_bindings") is not None,
    "sizes": (64, 128, 256),
    "max_batch": 2,
}


@pytest.fixture(scope="session")
def full_export(tiny, pictures, traced_once, once) -> Path:
    """A float32 export with int8 graphs and engines."""
    from mrc_edit.export.exporter import export

    int8 = pictures if importlib.util.find_spec("nncf") else None
    return once("exported-full", lambda folder: export(tiny, folder, int8=int8, **ENGINES))


@pytest.fixture(scope="session")
def float16_export(tiny, traced_once, once) -> Path:
    """A float16 export with engines."""
    from mrc_edit.export.exporter import export

    return once("exported-float16", lambda folder: export(tiny, folder, dtype="float16", **ENGINES))


@pytest.fixture(scope="session")
def slim(reference, tmp_path_factory) -> Path:
    """The released layout with an 85 M-parameter U-Net, written by the reference's own script."""
    folder = tmp_path_factory.mktemp("slim") / "checkpoint"
    script = reference / "make_checkpoint.py"
    subprocess.run([sys.executable, str(script), "slim", str(folder)], cwd=reference, check=True)
    return folder


@pytest.fixture(scope="session")
def eager(tiny):
    from mrc_edit.engine import Engine

    return Engine.from_pretrained(tiny, "eager")


@pytest.fixture(scope="session")
def engine(tiny_export):
    from mrc_edit.engine import Engine

    return Engine.from_pretrained(tiny_export)


@pytest.fixture(scope="session")
def fused(tiny):
    """The `torch` backend: the step graph over the kernels."""
    from mrc_edit.engine import Engine

    engine = Engine.from_pretrained(tiny, "torch", precision="float32")
    engine.backend.device_loop = None  # as by default on a CPU
    return engine


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """`[128, 64, 3]` uint8."""
    return np.random.RandomState(7).randint(0, 256, (128, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def error():
    """Relative error of two arrays."""
    from mrc_edit.core.fidelity import relative_error

    return relative_error


@pytest.fixture
def judge_server():
    """An endpoint for judges that misbehaves as the model's name says; see tests/judge/server.py."""
    server = module_at(ROOT / "tests" / "judge" / "server.py").JudgeServer().start()
    yield server
    server.stop()


def module_at(path: Path):
    """The module in a file beside the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ray_cluster():
    """The environment of a command that is to run on the cluster of tests/ray_cluster.py."""
    pytest.importorskip("ray", reason="--ray is tested where ray is installed")
    command = [sys.executable, ROOT / "tests" / "ray_cluster.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        assert address, "the cluster did not start"
        yield {"RAY_ADDRESS": address, "RAY_USAGE_STATS_ENABLED": "0"}
        process.stdin.close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub with an empty cache, in place of the one that `huggingface_hub` knows; see tests/hub_server.py."""
    from huggingface_hub import constants

    server = module_at(ROOT / "tests" / "hub_server.py").HubServer().start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)  # no folder here has the name of a repository
    yield server
    server.stop()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """`browser(page, script)`: the DOM of a page, opened from its file, after `script` ran in it."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")

    def dump(page: Path, script: str) -> str:
        probe = page.with_name("probe.html")
        probe.write_text(page.read_text().replace("</html>", f"<script>{script}</script></html>"))
        profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", profile, "--dump-dom", probe.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        probe.unlink()
        return done.stdout

    return dump
