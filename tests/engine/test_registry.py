import json
import subprocess
import sys

import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.backends import BACKENDS, state_of


def test_auto_takes_what_fits_the_folder(eager, engine):
    assert type(eager.backend).__name__ == "EagerBackend"
    assert type(engine.backend).__name__ == "OnnxRuntimeBackend"


def test_the_registry_says_what_each_backend_needs():
    assert state_of("eager") == state_of("onnxruntime") == "available"


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("mrc_edit.engine.backends.find_spec", lambda name: None)
    assert "pip install 'mrc-edit[cpu]'" in state_of("onnxruntime")


@pytest.mark.parametrize(
    ("folder", "backend", "word"),
    [
        ("tiny", "onnxruntime", "mrc-export first"),
        ("tiny_export", "eager", "checkpoint"),
        ("tiny", "cuda", "choose auto"),
        ("tiny", "tensorrt", "mrc-export first"),
    ],
)
def test_backends_that_do_not_fit(folder, backend, word, request):
    with pytest.raises(MRCError, match=word):
        Engine.from_pretrained(request.getfixturevalue(folder), backend)


def test_neither_checkpoint_nor_export(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(MRCError, match="neither a checkpoint"):
            Engine.from_pretrained(folder)


def test_the_runtime_imports_no_pytorch(tiny_export, photo):
    """On an export folder: torch, diffusers, transformers and onnx made impossible to import."""
    code = f"""
import sys, json, time
for name in ("torch", "diffusers", "transformers", "onnx", "safetensors", "accelerate"):
    sys.modules[name] = None
import numpy as np
from mrc_edit.engine import Engine
image = np.array({photo[:64].tolist()}, dtype=np.uint8)
result = Engine.from_pretrained({str(tiny_export)!r}).edit(image, "snow", resolution=64, num_inference_steps=2, seed=1)
print(json.dumps(result.images[0].size))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [64, 64]


def threads_of(backend) -> int:
    """Threads that a backend computes with."""
    if type(backend).__name__ == "OnnxRuntimeBackend":
        options = [session.get_session_options() for session in backend.sessions.values()]
        return max(option.intra_op_num_threads for option in options)
    if type(backend).__name__ == "OpenVinoBackend":
        model = backend.compiled("vae_decoder", {"latents": (1, backend.geometry.latent_channels, 8, 8)})
        return model.get_property("INFERENCE_NUM_THREADS")
    return torch.get_num_threads()


@pytest.mark.parametrize("backend", [name for name, entry in BACKENDS.items() if "threads" in entry.options])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_backend_takes_its_threads(backend, threads):
    if state_of(backend) != "available":
        pytest.skip(state_of(backend))
    before = torch.get_num_threads()
    try:
        assert threads_of(Engine.from_pretrained("mini", backend, threads=threads).backend) == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_that_cannot_be(threads):
    with pytest.raises(MRCError, match=r"threads is .*whole number from 1"):
        Engine.from_pretrained("mini", threads=threads)


def test_a_backend_without_threads_refuses_them(tiny_export, monkeypatch):
    monkeypatch.setattr("mrc_edit.engine.backends.find_spec", lambda name: name)
    with pytest.raises(MRCError, match="tensorrt has no option threads"):
        Engine.from_pretrained(tiny_export, "tensorrt", threads=2)
