import dataclasses
import json
import pickle
import re
import shutil

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import anything
from mrc_edit.engine import Engine
from mrc_edit.model import load_checkpoint, save_checkpoint
from mrc_edit.model.checkpoint import checkpoint_digest
from mrc_edit.model.extend import add_reward_blocks
from mrc_edit.model.rewards import REWARD_KEYS
from mrc_edit.model.seeded import seeded, seeded_checkpoint

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A seeded checkpoint with rewards after every block."""
    checkpoint = seeded_checkpoint()
    unet = seeded(add_reward_blocks(checkpoint.unet))
    save_checkpoint(dataclasses.replace(checkpoint, unet=unet), folder := tmp_path_factory.mktemp("blocks") / "out")
    return folder


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


def test_a_checkpoint_does_not_say_where_it_was_made(tiny, tmp_path):
    plain = AutoencoderKL.from_pretrained(tiny / "vae")
    assert plain.config["_name_or_path"]
    save_checkpoint(dataclasses.replace(load_checkpoint(tiny), vae=plain), tmp_path / "out")
    assert not any(str(tiny) in path.read_text() for path in (tmp_path / "out").rglob("*.json"))


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


def test_rewards_after_every_block_round_trip(blocks, tiny):
    assert load_checkpoint(tiny).unet.reward_injection == "time"
    unet = load_checkpoint(blocks).unet
    assert (unet.rewards, unet.reward_injection) == (True, "blocks")
    state = safetensors.torch.load_file(blocks / UNET)
    assert state.keys() == unet.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in unet.state_dict().items())
    assert not any("reward" in key for key in json.loads((blocks / "unet" / "config.json").read_text()))


@pytest.mark.parametrize(
    ("lost", "word"),
    [
        ("reward_type_embedding", "has 144 reward tensors but lacks ['reward_type_embedding']"),
        ("reward_blocks.4.ca.output.dense.bias", "lacks ['reward_blocks.4.ca.output.dense.bias']"),
        (
            "text_linear.bias",
            "lacks ['text_linear.bias']; an MRC checkpoint with reward_injection='blocks' has all 145",
        ),
        ("reward_blocks.", "'reward_blocks.0.ca.attention.output.dense.bias', "),
        ("reward_blocks.", "] and 102 more; "),
    ],
)
def test_some_tensors_of_the_blocks_missing_are_named(blocks, tmp_path, lost, word):
    copy = shutil.copytree(blocks, tmp_path / "copy")
    rewrite(copy / UNET, lambda state: {k: v for k, v in state.items() if not k.startswith(lost)})
    with pytest.raises(MRCError, match=re.escape(word)):
        load_checkpoint(copy)


def test_a_layer_after_a_block_that_is_not_there(blocks, tmp_path):
    copy = shutil.copytree(blocks, tmp_path / "copy")
    rewrite(copy / UNET, lambda state: state | {"reward_blocks.5.proj_deal.norm.bias": torch.zeros(32)})
    with pytest.raises(MRCError, match=r"unknown reward_blocks\.5\.proj_deal\.norm\.bias"):
        load_checkpoint(copy)


def test_rewards_after_every_block_edit_eagerly(blocks, eager, photo):
    arguments = {"seed": 1, "resolution": 0, "num_inference_steps": 2, "output_type": "latent"}
    editor = Engine.from_pretrained(blocks)
    best, worst = (
        editor.edit(photo, "snow", reward_scores=scores, **arguments).images for scores in ([5] * 3, [0] * 3)
    )
    assert best.shape == (1, 4, 16, 8)
    assert abs(best - worst).max() > 1e-3
    assert abs(best - eager.edit(photo, "snow", **arguments).images).max() > 1e-3


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


def shard(part):
    """Replace a file of weights by two shards and their index, as diffusers does."""
    path = next(part.glob("*.safetensors"))
    state, files = safetensors.torch.load_file(path), {}
    for i, keys in enumerate((list(state)[::2], list(state)[1::2])):
        file = path.with_name(f"{path.stem}-0000{i + 1}-of-00002.safetensors")
        safetensors.torch.save_file({key: state[key].clone() for key in keys}, file)
        files |= dict.fromkeys(keys, file.name)
    path.unlink()
    index = path.with_name(f"{path.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def halve(part):
    path = next(part.glob("*.safetensors"))
    rewrite(path, lambda state: {key: value.half() for key, value in state.items()})
    path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))


def as_transformers_5(part):
    for name in ("vocab.json", "merges.txt"):
        (part / name).unlink()


@pytest.mark.parametrize("change", [shard, halve])
def test_weights_in_shards_and_of_a_variant_are_what_diffusers_reads(copy, change):
    for part in ("unet", "vae", "text_encoder"):
        change(copy / part)
    as_transformers_5(copy / "tokenizer")
    ours = load_checkpoint(copy)
    variant = "fp16" if change is halve else None
    theirs = UNet2DConditionModel.from_pretrained(copy / "unet", variant=variant).state_dict()
    assert all(torch.equal(ours.unet.state_dict()[key], value.float()) for key, value in theirs.items())
    theirs = AutoencoderKL.from_pretrained(copy / "vae", variant=variant).state_dict()
    assert all(torch.equal(ours.vae.state_dict()[key], value.float()) for key, value in theirs.items())
    assert {p.dtype for p in ours.text_encoder.parameters()} == {torch.float32}


def test_a_folder_that_diffusers_saved_edits_as_diffusers(plain, photo, tmp_path, error):
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(str(plain), safety_checker=None)
    pipeline.save_pretrained(tmp_path, max_shard_size="1MB")
    assert not (tmp_path / "tokenizer" / "vocab.json").exists() and not (tmp_path / UNET).exists()
    arguments = {"num_inference_steps": 2, "guidance_scale": 7.5, "image_guidance_scale": 1.5}
    theirs = pipeline("snow", Image.fromarray(photo), generator=torch.Generator("cpu").manual_seed(1),
                      output_type="latent", **arguments).images  # fmt: skip
    ours = Engine.from_pretrained(tmp_path).edit(photo, "snow", seed=1, resolution=0, output_type="latent", **arguments)
    assert error(ours.images, theirs.numpy()) <= 1e-5


def test_shards_that_cannot_be_read_are_named(copy):
    index = shard(copy / "unet")
    content = json.loads(index.read_text())
    second = sorted(set(content["weight_map"].values()))[1]
    for files, message in (
        ({}, "has no weight_map"),
        ({"a": "../model.safetensors"}, "names '../model.safetensors'"),
        ({"a": "x.safetensors"}, r"x\.safetensors is missing, of 1 shards"),
        ({**content["weight_map"], "more": second}, "lacks more, which the index says"),
    ):
        index.write_text(json.dumps({"weight_map": files}))
        with pytest.raises(MRCError, match=message):
            load_checkpoint(copy)


def test_two_variants_are_named(copy):
    halve(copy / "unet")
    half = next((copy / "unet").glob("*.fp16.safetensors"))
    shutil.copy(half, half.with_name(half.name.replace("fp16", "non_ema")))
    with pytest.raises(MRCError, match="variants fp16, non_ema and no diffusion"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float64, 1e300), (torch.float8_e4m3fn, float("nan")), (torch.float16, float("inf"))]
)
def test_values_that_no_float32_holds(copy, dtype, value):
    rewrite(copy / UNET, with_value("conv_in.bias", lambda bias: torch.full(bias.shape, value, dtype=dtype)))
    with pytest.raises(MRCError, match="NaN or infinity as float32"):
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
        ("tokenizer/vocab.json", None, "vocab.json is missing beside merges.txt"),
        ("scheduler/scheduler_config.json", '{"_class_name": "os"}', "scheduler"),
        ("scheduler/scheduler_config.json", '{"_class_name": "DDIMScheduler", "beta_start": "x"}', "no scheduler"),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": 10000000000000}', "from 1 to 10000"),
        ("unet/config.json", "[" * 200_000, "not JSON"),
        ("unet/config.json", '{"layers_per_block": 2000000}', "layers_per_block is 2000000"),
        ("unet/config.json", '{"block_out_channels": [32, 1000000000]}', "block_out_channels is 1000000000"),
        ("unet/config.json", json.dumps({"down_block_types": ["DownBlock2D"] * 99}), "99 entries"),
        ("vae/config.json", '{"scaling_factor": NaN}', "scaling_factor is nan"),
        ("text_encoder/config.json", '{"num_hidden_layers": 1e9}', "num_hidden_layers is 1000000000.0"),
        ("defaults.json", '{"num_inference_steps": "many"}', "num_inference_steps is 'many', not a whole number"),
        ("defaults.json", '{"guidance_scale": NaN}', "guidance_scale is nan"),
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
        save_checkpoint(checkpoint, tmp_path / "out", anything)
    assert checkpoint_digest(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_digest_tells_checkpoints_apart(tiny, copy):
    assert checkpoint_digest(tiny) == checkpoint_digest(copy)
    rewrite(copy / UNET, with_value("conv_in.bias", lambda v: v + 1e-6))
    assert checkpoint_digest(tiny) != checkpoint_digest(copy)
