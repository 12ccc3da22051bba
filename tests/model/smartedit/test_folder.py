import json
import shutil

import pytest
import safetensors.torch
import torch

from mrc_edit.core import memory
from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint
from mrc_edit.model.smartedit.folder import load_smartedit


@pytest.fixture
def copied(smartedit, tmp_path):
    return shutil.copytree(smartedit, tmp_path / "smartedit")


def test_released_names(smartedit):
    model = load_smartedit(smartedit)
    assert len(model.bim.state_dict()) == 89
    assert "sd_qformer.encoder.layer.2.crossattention.self.key.weight" in model.qformer.state_dict()
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.llm.parameters())
    assert load_checkpoint(smartedit).unet.feature_bias
    assert load_checkpoint(smartedit).defaults.num_inference_steps == 100


@pytest.mark.parametrize("part", ["llm", "qformer", "bim", "projector", "vision"])
@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_faulty_tensors_are_one_error(copied, part, fault):
    path = copied / part / "model.safetensors"
    state = safetensors.torch.load_file(path)
    key = max(state, key=lambda name: state[name].ndim)
    value = state.pop(key)
    if fault != "missing":
        state[f"{key}2" if fault == "unknown" else key] = value if fault == "unknown" else value[..., :-1].contiguous()
    safetensors.torch.save_file(state, path)
    with pytest.raises(MRCError, match=part):
        load_smartedit(copied)


@pytest.mark.parametrize(
    "name",
    ["llm/model.safetensors", "bim/config.json", "qformer/config.json", "llm_tokenizer/tokenizer.json",
     "llm/config.json", "projector/model.safetensors", "vision/config.json", "smartedit.json"],
)  # fmt: skip
def test_missing_files_are_one_error(copied, name):
    (copied / name).unlink()
    with pytest.raises(MRCError, match=f"{name} is missing"):
        load_smartedit(copied)


def test_pickles_are_never_loaded(copied):
    state = safetensors.torch.load_file(copied / "bim" / "model.safetensors")
    (copied / "bim" / "model.safetensors").unlink()
    torch.save(state, copied / "bim" / "adapter_model.bin")
    with pytest.raises(MRCError, match="pickled"):
        load_smartedit(copied)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("smartedit.json", "kind", "llava"), ("qformer/config.json", "heads", 0), ("qformer/config.json", "heads", 5),
     ("bim/config.json", "width", 24), ("qformer/config.json", "layers", 10**9),
     ("llm/config.json", "vocab_size", 430)],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(copied, name, key, value):
    content = json.loads((copied / name).read_text())
    (copied / name).write_text(json.dumps(content | {key: value}))
    with pytest.raises(MRCError):
        load_smartedit(copied)


def test_too_little_memory_is_said_before_it_is_taken(smartedit, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 100_000)
    monkeypatch.setattr("mrc_edit.model.smartedit.folder.read_weights", None)
    with pytest.raises(MRCError, match=r"language model in float32 takes 0\.0 GB of main memory and 0\.0 GB are free"):
        load_smartedit(smartedit)


def test_attention_is_pytorchs_whatever_the_file_asks_for(copied):
    for part in ("llm", "vision"):
        content = json.loads((copied / part / "config.json").read_text())
        (copied / part / "config.json").write_text(json.dumps(content | {"attn_implementation": "nobody/a-kernel"}))
    model = load_smartedit(copied)
    assert model.llm.config._attn_implementation == model.vision.config._attn_implementation == "sdpa"
