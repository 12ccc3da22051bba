import json
import pickle
import re
import shutil

import pytest
import safetensors.torch
import torch

from mrc.errors import MRCError
from mrc.model import load_checkpoint, save_checkpoint
from mrc.model.checkpoint import checkpoint_digest
from mrc.model.rewards import REWARD_KEYS

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def rewrite(path, change):
    """Save the tensors of `path` as `change` returns them."""
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({key: value.clone() for key, value in change(state).items()}, path)


def test_round_trip(tiny, tmp_path):
    first = load_checkpoint(tiny)
    save_checkpoint(first, tmp_path / "again")
    second = load_checkpoint(tmp_path / "again")
    for name in ("unet", "vae", "text_encoder"):
        one, two = getattr(first, name).state_dict(), getattr(second, name).state_dict()
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert first.tokenizer("it snows").input_ids == second.tokenizer("it snows").input_ids
    assert dict(first.scheduler.config) == dict(second.scheduler.config)


def test_the_layout_is_the_released_one(tiny):
    config = json.loads((tiny / "unet" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DConditionModel"
    assert not any("reward" in key for key in config)
    assert all(key.startswith("text_model.") for key in safetensors.torch.load_file(tiny / TEXT))


def test_half_precision_on_request(tiny):
    checkpoint = load_checkpoint(tiny, torch.float16)
    assert {p.dtype for p in checkpoint.unet.parameters()} == {torch.float16}


def test_keys_of_older_libraries_load(copy, tiny):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older_vae(state):
        found = {}
        for key, value in state.items():
            for new, name in old.items():
                if f"attentions.0.{new}." in key:
                    key = key.replace(new, name)
                    value = value[:, :, None, None] if value.ndim == 2 else value
            found[key] = value
        return found

    rewrite(copy / VAE, older_vae)
    rewrite(copy / TEXT, lambda state: {key.removeprefix("text_model."): value for key, value in state.items()}
            | {"embeddings.position_ids": torch.arange(77)})  # fmt: skip
    assert any("proj_attn" in key for key in safetensors.torch.load_file(copy / VAE))
    expected, found = load_checkpoint(tiny), load_checkpoint(copy)
    for name in ("vae", "text_encoder"):
        one, two = getattr(expected, name).state_dict(), getattr(found, name).state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_no_reward_keys_is_a_plain_checkpoint(copy):
    rewrite(copy / UNET, lambda state: {k: v for k, v in state.items() if not k.startswith(REWARD_KEYS)})
    assert load_checkpoint(copy).unet.rewards is False


def test_some_reward_keys_missing_are_named(copy):
    rewrite(copy / UNET, lambda state: {k: v for k, v in state.items() if k != "text_linear.bias"})
    with pytest.raises(MRCError, match=re.escape("has 33 reward tensors but lacks ['text_linear.bias']")):
        load_checkpoint(copy)


def with_value(key, change):
    return lambda state: state | {key: change(state[key])}


@pytest.mark.parametrize(
    ("path", "change", "word"),
    [
        (UNET, lambda s: {k: v for k, v in s.items() if k != "conv_in.bias"}, "missing conv_in.bias"),
        (UNET, lambda s: s | {"other.weight": torch.zeros(1)}, "unknown other.weight"),
        (UNET, with_value("conv_in.weight", lambda v: v[:, :4].contiguous()), r"conv_in.weight is \[32, 4, 3, 3\]"),
        (UNET, with_value("conv_in.bias", lambda v: v * float("nan")), "conv_in.bias holds NaN"),
        (VAE, with_value("quant_conv.bias", lambda v: v / 0), "quant_conv.bias holds NaN or infinity"),
        (UNET, with_value("conv_in.bias", lambda v: v.to(torch.int32)), "not floating point"),
        (TEXT, lambda s: dict(list(s.items())[1:]), "missing"),
    ],
)
def test_tensors_that_do_not_fit(copy, path, change, word):
    rewrite(copy / path, change)
    with pytest.raises(MRCError, match=word):
        load_checkpoint(copy)


@pytest.mark.parametrize("path", [UNET, VAE, TEXT])
@pytest.mark.parametrize("keep", [0, 4, 2000])
def test_truncated_weights(copy, path, keep):
    (copy / path).write_bytes((copy / path).read_bytes()[:keep])
    with pytest.raises(MRCError, match="truncated or damaged"):
        load_checkpoint(copy)


def test_pickles_are_refused_and_never_loaded(copy, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (copy / UNET).unlink()
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(MRCError, match=r"pickled weights.*convert them to safetensors"):
        load_checkpoint(copy)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("path", "text", "word"),
    [
        ("unet/config.json", "{", "not JSON"),
        ("unet/config.json", "[]", "not an object"),
        ("unet/config.json", '{"block_out_channels": "wide"}', "describes no model"),
        ("vae/config.json", '{"block_out_channels": [32]}', "do not fit"),
        ("text_encoder/config.json", '{"hidden_size": 7}', "describes no model"),
        ("tokenizer/tokenizer.json", "{", "tokenizer"),
        ("vae/config.json", None, "missing"),
        ("tokenizer/vocab.json", None, "missing"),
        ("scheduler/scheduler_config.json", '{"_class_name": "os"}', "scheduler"),
        ("model_index.json", None, "not a checkpoint"),
        (VAE, None, "missing"),
    ],
)
def test_damaged_folders(copy, path, text, word):
    if text is None:
        (copy / path).unlink()
    else:
        (copy / path).write_text(text)
    with pytest.raises(MRCError, match=word):
        load_checkpoint(copy)


def test_a_failed_save_leaves_the_old_folder(tiny, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(tiny)
    save_checkpoint(checkpoint, tmp_path / "out")
    before = checkpoint_digest(tmp_path / "out")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(checkpoint, tmp_path / "out")
    assert checkpoint_digest(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_digest_tells_checkpoints_apart(tiny, copy):
    assert checkpoint_digest(tiny) == checkpoint_digest(copy)
    rewrite(copy / UNET, with_value("conv_in.bias", lambda v: v + 1e-6))
    assert checkpoint_digest(tiny) != checkpoint_digest(copy)
