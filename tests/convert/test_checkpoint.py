"""`mrc-convert checkpoint`: what old libraries pickled loads afterwards, and nothing in it runs."""

import importlib.util
import json
import pickle
import shutil
import sys
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mrc_edit.convert.checkpoint import PICKLED, convert_checkpoint
from mrc_edit.convert.command import main
from mrc_edit.convert.pickles import INERT, read_pickle
from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint
from mrc_edit.model.weights import WEIGHTS

SPEC = importlib.util.spec_from_file_location("layouts", Path(__file__).parents[1] / "model" / "layouts.py")
layouts = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(layouts)


def pickled(folder, zipped=True):
    """Weights as old diffusers saved them, beside files that are of no use here."""
    for part, name in WEIGHTS.items():
        state = safetensors.torch.load_file(folder / part / name)
        (folder / part / name).unlink()
        torch.save(state | {"epoch": 3}, folder / part / PICKLED[part], _use_new_zipfile_serialization=zipped)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def old(plain, tmp_path):
    return pickled(shutil.copytree(plain, tmp_path / "old"))


def same_weights(first, second):
    for part in WEIGHTS:
        one, two = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_pickled_weights_become_the_same_checkpoint(old, plain, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["checkpoint", str(old), str(tmp_path / "out"), "--json"])
    assert end.value.code == 0
    dropped = json.loads(capsys.readouterr().out)["dropped"]
    assert "safety_checker/config.json" in dropped and f"epoch of unet/{PICKLED['unet']}" in dropped
    assert not list((tmp_path / "out").rglob("*.bin"))
    same_weights(load_checkpoint(tmp_path / "out"), load_checkpoint(plain))


def test_the_oldest_format_and_shards_too(plain, tmp_path):
    old = pickled(shutil.copytree(plain, tmp_path / "old"), zipped=False)
    path = old / "unet" / PICKLED["unet"]
    state, files = torch.load(path, weights_only=True), {}
    for i, keys in enumerate((list(state)[::2], list(state)[1::2])):
        torch.save({key: state[key] for key in keys}, path.with_name(f"{path.stem}-0000{i + 1}-of-00002.bin"))
        files |= dict.fromkeys(keys, f"{path.stem}-0000{i + 1}-of-00002.bin")
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": files}))
    path.unlink()
    convert_checkpoint(old, tmp_path / "out")
    same_weights(load_checkpoint(tmp_path / "out"), load_checkpoint(plain))


def test_nothing_in_a_pickle_runs(old, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (old / "unet" / PICKLED["unet"]).write_bytes(pickle.dumps({"a": Trap()}, protocol=2))
    with pytest.raises(MRCError, match=r"unet/diffusion_pytorch_model\.bin is not loaded"):
        convert_checkpoint(old, tmp_path / "out")
    torch.save({"a": Trap()}, old / "unet" / PICKLED["unet"])
    with pytest.raises(MRCError, match="other objects than tensors, which could run code"):
        convert_checkpoint(old, tmp_path / "out")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


def test_a_training_state_of_lightning(tmp_path, monkeypatch):
    """The first Stable Diffusion files name a class of Lightning as the key of its settings."""
    name = INERT[0][1]
    for end in range(1, name.count(".") + 1):
        module = ".".join(name.split(".")[:end])
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    module, _, kind = name.rpartition(".")
    found = type(kind, (), {"__module__": module})
    setattr(sys.modules[module], kind, found)
    state = {"state_dict": {"a": torch.ones(2)}, "callbacks": {found: {"best": 1}}, "epoch": 7}
    torch.save(state, tmp_path / "a.ckpt")
    monkeypatch.undo()
    tensors, dropped = read_pickle(tmp_path / "a.ckpt")
    assert tensors.keys() == {"a"} and dropped == ["callbacks", "epoch"]


@pytest.mark.parametrize("keep", [0, 40, 900])
def test_a_truncated_pickle_is_one_error(old, tmp_path, keep):
    path = old / "vae" / PICKLED["vae"]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MRCError, match=r"vae/diffusion_pytorch_model\.bin is not loaded.*truncated or damaged"):
        convert_checkpoint(old, tmp_path / "out")


def test_a_folder_that_holds_something_stays(old, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(MRCError, match="exists already"):
        convert_checkpoint(old, tmp_path / "out")
    convert_checkpoint(old, tmp_path / "out", overwrite=True)
    load_checkpoint(tmp_path / "out")


def test_what_lacks_a_tensor_is_named_and_leaves_nothing(old, tmp_path):
    path = old / "unet" / PICKLED["unet"]
    state = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "conv_in.bias"}, path)
    with pytest.raises(MRCError, match=r"old/unet.*missing conv_in\.bias"):
        convert_checkpoint(old, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_single_pickled_file_becomes_a_folder(tmp_path):
    pipeline = layouts.sd1()
    pipeline.save_pretrained(tmp_path / "base")
    averaged = layouts.sd1().unet
    averaged.load_state_dict({key: (value / 2).half().float() for key, value in averaged.state_dict().items()})
    state = layouts.original_state(pipeline, averaged)
    state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"state_dict": state, "epoch": 7, "optimizer_states": []}, tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match="not used: model_ema"):
        dropped = convert_checkpoint(tmp_path / "a.ckpt", tmp_path / "plain", base=tmp_path / "base")
    assert dropped == ["epoch", "optimizer_states"]
    stored = safetensors.torch.load_file(tmp_path / "plain" / "unet" / WEIGHTS["unet"])
    assert {value.dtype for value in stored.values()} == {torch.float16}
    same_weights(load_checkpoint(tmp_path / "plain"), load_checkpoint(tmp_path / "base"))
    convert_checkpoint(tmp_path / "a.ckpt", tmp_path / "averaged", base=tmp_path / "base", ema=True)
    found = load_checkpoint(tmp_path / "averaged").unet.state_dict()
    assert all(torch.equal(found[key], value) for key, value in averaged.state_dict().items())
