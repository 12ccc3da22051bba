import json
import subprocess
import sys

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.backends import state_of


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
