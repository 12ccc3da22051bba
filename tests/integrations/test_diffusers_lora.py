"""LoRA through diffusers' own loader on the U-Net with rewards, against the same files merged by ours."""

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from PIL import Image

from mrc_edit import MRCError, MRCPipeline
from mrc_edit.engine import Engine
from mrc_edit.model import load_checkpoint

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
STEPS = {"num_inference_steps": 2}


def randomized(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.fixture(scope="module")
def files(plain, tmp_path_factory):
    """A LoRA of U-Net and text encoder as a training script saves it, one of kohya's scripts, and others."""
    stock = StableDiffusionInstructPix2PixPipeline.from_pretrained(str(plain), safety_checker=None)
    layers, configs = {}, {}
    for part, targets in (("unet", [*ATTENTION, "conv1"]), ("text_encoder", ["q_proj", "fc1"])):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
        getattr(stock, part).add_adapter(config)
        module = randomized(getattr(stock, part), 1)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(module, adapter_name="default")
        configs[f"{part}_lora_adapter_metadata"] = config.to_dict()
    folder = tmp_path_factory.mktemp("lora")
    stock.save_lora_weights(folder, **layers, **configs)
    files = {"diffusers": folder / "pytorch_lora_weights.safetensors"}
    name, normal = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", torch.Generator().manual_seed(2)
    tensors = {
        f"{name}.lora_down.weight": 0.2 * torch.randn(4, 64, generator=normal),
        f"{name}.lora_up.weight": 0.2 * torch.randn(64, 4, generator=normal),
        f"{name}.alpha": torch.tensor(2.0),
    }
    for kind, more in {
        "kohya": {},
        "stranger": {"lora_unet_mid_block_attentions_9_proj_in.lora_down.weight": torch.zeros(4, 64)},
        "wide": {f"{name}.lora_up.weight": torch.zeros(32, 4)},
        "dora": {f"{name}.dora_scale": torch.zeros(64, 1)},
    }.items():
        files[kind] = folder / f"{kind}.safetensors"
        safetensors.torch.save_file(tensors | more, files[kind])
    peft = randomized(get_peft_model(load_checkpoint(plain).unet, LoraConfig(target_modules=ATTENTION)), 3)
    peft.save_pretrained(folder / "peft")
    return files | {"peft": folder / "peft"}


@pytest.fixture
def pipe(tiny):
    pipe = MRCPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def picture(photo):
    return Image.fromarray(photo[:64])


def edited(pipe, picture):
    generator = torch.Generator().manual_seed(1)
    return np.asarray(pipe("make it night", picture, generator=generator, **STEPS).images[0], dtype=int)


def merged(tiny, picture, scales):
    engine = Engine.from_pretrained(tiny, "eager", lora=scales)
    return np.asarray(engine.edit(picture, "make it night", seed=1, resolution=0, **STEPS).images[0], dtype=int)


def weights(pipe):
    return {
        (part, key): value.clone() for part in ("unet", "text_encoder") for key, value in
        getattr(pipe, part).state_dict().items()
    }  # fmt: skip


def test_loras_are_loaded_scaled_and_removed_again(tiny, pipe, picture, files):
    before, first = weights(pipe), edited(pipe, picture)
    pipe.load_lora_weights(files["diffusers"], adapter_name="style")
    assert np.abs(edited(pipe, picture) - merged(tiny, picture, {files["diffusers"]: 1.0})).max() <= 1
    pipe.load_lora_weights(files["kohya"].parent, "detail", weight_name="kohya.safetensors")
    with pytest.raises(MRCError, match="adapter_name is 'style', which another LoRA has"):
        pipe.load_lora_weights(files["kohya"], "style")
    pipe.set_adapters(["style", "detail"], [0.5, -1.5])
    both = edited(pipe, picture)
    assert np.abs(both - merged(tiny, picture, {files["diffusers"]: 0.5, files["kohya"]: -1.5})).max() <= 1
    assert np.abs(both - first).max() > 1
    pipe.unload_lora_weights()
    after = weights(pipe)
    assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())
    assert (edited(pipe, picture) == first).all()


def test_fused_ones_are_saved(tiny, pipe, picture, files, tmp_path):
    pipe.load_lora_weights(files["diffusers"])
    with pytest.raises(MRCError, match=r"LoRA layers are loaded.*unload_lora_weights"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    engine = Engine.from_pretrained(tmp_path / "saved", "eager")
    ours = np.asarray(engine.edit(picture, "make it night", seed=1, resolution=0, **STEPS).images[0], dtype=int)
    assert np.abs(ours - merged(tiny, picture, {files["diffusers"]: 1.0})).max() <= 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("stranger", "is for another model: 1 of its 4 tensors are for layers that this one lacks"),
        ("wide", r"is for another model: .*\[32, 4\]"),
        ("dora", "holds .*dora_scale, which is of no LoRA"),
        ("peft", "loader takes 0 of the .* layers"),
    ],
)
def test_a_file_of_which_diffusers_would_leave_out_some_is_refused(pipe, picture, files, kind, message):
    before, first = weights(pipe), edited(pipe, picture)
    with pytest.raises(MRCError, match=message):
        pipe.load_lora_weights(files[kind])
    assert before.keys() == weights(pipe).keys() and (edited(pipe, picture) == first).all()


def test_a_lora_by_its_name_on_the_hub(tiny, pipe, picture, files, hub):
    hub.push("someone/style", files["diffusers"].parent)
    with pytest.raises(MRCError, match="give weight_name"):
        pipe.load_lora_weights("someone/style")
    pipe.load_lora_weights("someone/style", weight_name="kohya.safetensors")
    assert np.abs(edited(pipe, picture) - merged(tiny, picture, {files["kohya"]: 1.0})).max() <= 1
