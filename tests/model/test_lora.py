"""LoRA files as diffusers, PEFT and kohya's scripts write them, against what diffusers fuses of the same files."""

import json
import pickle
import re

import pytest
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionInstructPix2PixPipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.shipped import MODELS
from mrc_edit.model import load_checkpoint
from mrc_edit.model.lora import merge_loras

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "v_proj", "fc1"]
LAYERS = {  # of all kinds that a file may change, with in, out and kernel
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (64, 32, ()),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0": (32, 32, ()),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj": (32, 256, ()),
    "lora_unet_mid_block_attentions_0_proj_in": (64, 64, (1, 1)),
    "lora_unet_down_blocks_1_resnets_0_conv1": (32, 64, (3, 3)),
    "lora_unet_up_blocks_0_resnets_0_conv_shortcut": (128, 64, (1, 1)),
    "lora_unet_up_blocks_0_upsamplers_0_conv": (64, 64, (3, 3)),
    "lora_unet_down_blocks_0_resnets_0_time_emb_proj": (128, 32, ()),
    "lora_te_text_model_encoder_layers_1_self_attn_out_proj": (64, 64, ()),
    "lora_te_text_model_encoder_layers_0_mlp_fc2": (128, 64, ()),
}


def pipeline(folder):
    return StableDiffusionInstructPix2PixPipeline.from_pretrained(str(folder), safety_checker=None)


def randomize(module, seed):
    """Give the adapters of a model random values; those that peft begins with change nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def of_diffusers(plain, tmp_path_factory):
    """What a training script of diffusers saves: U-Net and text encoder, with alphas and without."""
    files = {}
    for name, settings in (("with", {"lora_alpha": 8, "use_rslora": True}), ("without", {"lora_alpha": 4})):
        pipe = pipeline(plain)
        unet = LoraConfig(r=4, target_modules=[*ATTENTION, "conv1", "proj_in"], rank_pattern={"to_k": 2}, **settings)
        text = LoraConfig(r=3, lora_alpha=6 if name == "with" else 3, target_modules=TEXT)
        pipe.unet.add_adapter(unet)
        pipe.text_encoder.add_adapter(text)
        layers, configs = {}, {}
        for part, config in (("unet", unet), ("text_encoder", text)):
            randomize(getattr(pipe, part), 1)
            layers[f"{part}_lora_layers"] = get_peft_model_state_dict(getattr(pipe, part), adapter_name="default")
            configs[f"{part}_lora_adapter_metadata"] = config.to_dict()
        folder = tmp_path_factory.mktemp(name)
        pipe.save_lora_weights(folder, **layers, **(configs if name == "with" else {}))
        files[name] = folder / "pytorch_lora_weights.safetensors"
    return files


@pytest.fixture(scope="module")
def of_kohya(tmp_path_factory):
    """A file in the format of kohya's scripts: linear layers, LoCon's convolutions, text encoder, alphas."""
    generator, tensors = torch.Generator().manual_seed(2), {}
    for name, (inputs, outputs, kernel) in LAYERS.items():
        point = (1,) * len(kernel)
        tensors |= {
            f"{name}.lora_down.weight": 0.1 * torch.randn(4, inputs, *kernel, generator=generator),
            f"{name}.lora_up.weight": 0.1 * torch.randn(outputs, 4, *point, generator=generator),
            f"{name}.alpha": torch.tensor(2.0 if "conv" in name else 1.0),
        }
    path = tmp_path_factory.mktemp("kohya") / "kohya.safetensors"
    safetensors.torch.save_file(tensors, path, {"ss_network_module": "networks.lora"})
    return path


def merged(folder, scales):
    checkpoint = load_checkpoint(folder)
    merge_loras(checkpoint, scales)
    return checkpoint


def differences(ours, theirs):
    """Greatest difference of the weights of U-Net and text encoder to those of a pipeline."""
    return {
        part: max(
            (value - getattr(theirs, part).state_dict()[key]).abs().max().item()
            for key, value in getattr(ours, part).state_dict().items()
        )
        for part in ("unet", "text_encoder")
    }


def fused(folder, scales):
    pipe = pipeline(folder)
    for i, path in enumerate(scales):
        pipe.load_lora_weights(str(path), adapter_name=str(i))
    pipe.set_adapters([str(i) for i in range(len(scales))], list(scales.values()))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


@pytest.mark.parametrize("names", [("with",), ("without",), ("kohya",), ("with", "kohya")])
def test_merged_weights_are_those_that_diffusers_fuses(plain, of_diffusers, of_kohya, names):
    files = of_diffusers | {"kohya": of_kohya}
    scales = dict(zip([files[name] for name in names], (0.8, -0.5), strict=False))
    theirs = fused(plain, scales)
    moved = differences(load_checkpoint(plain), theirs)
    assert min(moved.values()) > 1e-2
    assert max(differences(merged(plain, scales), theirs).values()) <= 1e-6


@pytest.mark.parametrize("settings", [{"lora_alpha": 9}, {"lora_alpha": 9, "use_rslora": True},
                                      {"lora_alpha": 9, "alpha_pattern": {"attn2.to_k": 1, "to_q": 2}}])  # fmt: skip
def test_a_folder_of_peft(plain, tmp_path, settings):
    config = LoraConfig(r=4, target_modules=[*ATTENTION, "conv2"], rank_pattern={"to_v": 2}, **settings)
    model = get_peft_model(pipeline(plain).unet, config)
    randomize(model, 3)
    model.save_pretrained(tmp_path)
    theirs = model.merge_and_unload().state_dict()
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        ours = merged(plain, {path: 1.0}).unet.state_dict()
        assert max((value - theirs[key]).abs().max() for key, value in ours.items()) <= 1e-6
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(MRCError, match=r"adapter_config\.json is missing; copy it too"):
        merged(plain, {tmp_path: 1.0})


OLD_NAMES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight":
        ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
         "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight"],
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora_B.weight":
        ["unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
         "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora.up.weight"],
    "text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight":
        ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight"] * 2,
}  # fmt: skip


@pytest.mark.parametrize("age", [0, 1])
def test_names_that_older_diffusers_wrote(plain, of_diffusers, tmp_path, age):
    tensors = safetensors.torch.load_file(of_diffusers["without"])
    known = {key.replace(".text_model", ""): key for key in tensors}
    renamed = dict(tensors)
    for new, old in OLD_NAMES.items():
        for ours, theirs in (("lora_A", "down"), ("lora_B", "up")):
            key = known[new.replace("lora_A", ours).replace("lora_B", ours)]
            renamed[old[age].replace("down", theirs).replace(".up.", f".{theirs}.").replace(f"{theirs}_blocks",
                    "down_blocks")] = renamed.pop(key)  # fmt: skip
    safetensors.torch.save_file(renamed, tmp_path / "old.safetensors")
    assert renamed.keys() != tensors.keys()
    one, two = (merged(plain, {path: 1.0}) for path in (of_diffusers["without"], tmp_path / "old.safetensors"))
    for part in ("unet", "text_encoder"):
        state = getattr(two, part).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in getattr(one, part).state_dict().items())


def test_three_factors_of_a_convolution_are_three_convolutions(plain, tmp_path):
    generator = torch.Generator().manual_seed(4)
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    shapes = {"down": (3, 32, 1, 1), "mid": (3, 3, 3, 3), "up": (32, 3, 1, 1)}
    factors = {role: torch.randn(shape, generator=generator) for role, shape in shapes.items()}
    tensors = {f"{name}.lora_{role}.weight": factor for role, factor in factors.items()}
    safetensors.torch.save_file(tensors, tmp_path / "locon.safetensors")
    before, after = load_checkpoint(plain), merged(plain, {tmp_path / "locon.safetensors": 1.0})
    x = torch.randn(1, 32, 6, 6, generator=generator)
    old, new = (each.unet.down_blocks[0].resnets[0].conv1(x) for each in (before, after))
    inner = F.conv2d(F.conv2d(x, factors["down"]), factors["mid"], padding=1)
    torch.testing.assert_close(new - old, F.conv2d(inner, factors["up"]), rtol=1e-4, atol=1e-4)


ARGUMENTS = {"num_inference_steps": 2, "guidance_scale": 7.5, "image_guidance_scale": 1.5, "output_type": "latent"}


def test_edits_are_those_of_diffusers_with_two_loras_and_without_them_as_before(
    plain, of_diffusers, of_kohya, photo, error
):
    files = {str(of_diffusers["with"]): 0.8, str(of_kohya): 0.7}

    def edited(backend, **options):
        return Engine.from_pretrained(plain, backend, **options).edit(
            photo, "snow", seed=1, resolution=0, **ARGUMENTS
        ).images  # fmt: skip

    before = edited("eager")
    expected = fused(plain, files)(
        "snow", Image.fromarray(photo), generator=torch.Generator("cpu").manual_seed(1), **ARGUMENTS
    ).images.numpy()
    assert error(before, expected) > 1e-2
    assert error(edited("eager", lora=files), expected) <= 1e-5
    assert error(edited("torch", precision="float32", lora=files), expected) <= 1e-4
    assert (edited("eager", lora={}) == before).all()


def test_a_lora_changes_a_model_with_rewards_by_the_same_amount(tiny, plain, of_diffusers):
    changes = []
    for folder in (tiny, plain):
        before, after = load_checkpoint(folder), merged(folder, {of_diffusers["with"]: 1.0})
        state = before.unet.state_dict()
        changes.append({key: value - state[key] for key, value in after.unet.state_dict().items()})
    assert all(torch.equal(value, changes[0][key]) for key, value in changes[1].items())
    assert not any(value.any() for key, value in changes[0].items() if key not in changes[1])


def rewritten(path, target, change, metadata=None):
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), target, metadata)
    return target


UP = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
DOWN = UP.replace("_up.", "_down.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {UP: torch.zeros(320, 4, 1, 1)}, r"another model: lora_unet_mid_block_attentions_0_proj_in is "
         r".*'up': \[320, 4, 1, 1\].*model's weight is \[64, 64, 1, 1\]"),
        (lambda t: t | {UP: torch.zeros(64, 4)[:, :3].contiguous()}, "for another model"),
        (lambda t: t | {UP: torch.zeros(256)}, "for another model"),
        (lambda t: t | {UP: torch.zeros(64, 0, 1, 1), DOWN: torch.zeros(0, 64, 1, 1)}, "for another model"),
        (lambda t: t | {UP.replace("_up.", "_mid."): torch.zeros(3, 4, 1, 1)}, r"'mid': \[3, 4, 1, 1\]"),
        (lambda t: t | {UP: torch.tensor(1.0)}, "for another model"),
        (lambda t: t | {"lora_unet_up_blocks_3_x.alpha": torch.ones(1)}, "1 of its 31 tensors"),
        (lambda t: t | {"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)}, "layers that this one"),
        (lambda t: t | {"lora_unet_conv_in.hada_w1_a": torch.ones(1)}, "holds lora_unet_conv_in.hada_w1_a, .*LoHa"),
        (lambda t: t | {"lora_unet_conv_in.dora_scale": torch.ones(1)}, "DoRA"),
        (lambda t: {k: v for k, v in t.items() if k != UP}, "lacks a tensor of lora_unet_mid_block_attentions_0_proj"),
        (lambda t: t | {"unet.mid_block.attentions.0.proj_in.lora.up.weight": t[UP].clone()}, "a second time"),
        (lambda t: t | {UP: t[UP] * float("nan")}, f"tensor {UP} holds other things than finite"),
        (lambda t: t | {UP: t[UP].int()}, "other things than finite numbers"),
        (lambda t: t | {UP.replace("lora_up.weight", "alpha"): torch.ones(2)}, "has 2 numbers, not one"),
        (lambda t: {}, "holds no tensors"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_one_error(plain, of_kohya, tmp_path, change, message):
    path = rewritten(of_kohya, tmp_path / "bad.safetensors", change)
    with pytest.raises(MRCError, match=message) as raised:
        merged(plain, {path: 1.0})
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_truncated_files(plain, of_kohya, tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(of_kohya.read_bytes()[:keep])
    with pytest.raises(MRCError, match="no safetensors file, or truncated or damaged"):
        merged(plain, {path: 1.0})


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora.ckpt", "lora.safetensors"])
def test_pickles_are_never_opened(plain, tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(MRCError, match=r"pickled, which can run code|no safetensors file"):
        merged(plain, {tmp_path / name: 1.0})
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "0.8", True, None])
def test_scales(plain, of_kohya, scale):
    with pytest.raises(MRCError, match=r"the scale of .*kohya\.safetensors is .*finite number"):
        merged(plain, {of_kohya: scale})


def test_no_file_and_no_mapping(plain, tmp_path):
    with pytest.raises(MRCError, match=r"none\.safetensors cannot be read \(No such file"):
        merged(plain, {tmp_path / "none.safetensors": 1})
    with pytest.raises(MRCError, match=r"holds 0 of adapter_model\.safetensors and pytorch_lora"):
        merged(plain, {tmp_path: 1})
    with pytest.raises(MRCError, match=r"lora is \['a.safetensors'\]; give scales by file"):
        merged(plain, ["a.safetensors"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "type 'LOHA'"),
        ({"init_lora_weights": "pissa"}, "starts from 'pissa'"),
        ({"alpha_pattern": {"(a+)+": 1}}, "not of names of layers"),
        ({"lora_alpha": None}, "lora_alpha None"),
    ],
)
def test_settings_of_peft_that_no_plain_lora_has(plain, of_diffusers, tmp_path, change, message):
    with safetensors.safe_open(of_diffusers["with"], "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    settings |= {f"unet.{key}": value for key, value in change.items()}
    for text, words in ((json.dumps(settings), message), ("[", "header is damaged"), ("[]", "header is damaged")):
        path = rewritten(of_diffusers["with"], tmp_path / "x.safetensors", dict, {"lora_adapter_metadata": text})
        with pytest.raises(MRCError, match=words):
            merged(plain, {path: 1.0})


def test_exports_say_what_to_do(of_kohya):
    line = f"lora cannot be added.* mrc-export CHECKPOINT OUT --lora {re.escape(str(of_kohya))}:1.0;"
    with pytest.raises(MRCError, match=line):
        Engine.from_pretrained(MODELS["mini"] / "onnx", lora={of_kohya: 1.0})
    with pytest.raises(MRCError, match="for another model"):  # of the shipped model the checkpoint opens
        Engine.from_pretrained("mini", lora={of_kohya: 1.0})
