"""Checkpoints in the layouts that people have, written by diffusers and transformers, with tiny seeded weights."""

import re
import shutil

import safetensors.torch
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mrc_edit.model.seeded import byte_words, seeded, seeded_checkpoint

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PARTS = ("unet", "vae", "text_encoder")


def pipeline_of(unet, vae, text_encoder, tokenizer, scheduler):
    for module in (unet, vae, text_encoder):  # numbers that float16 holds, so that half files lose nothing
        module.load_state_dict({key: value.half().to(value.dtype) for key, value in module.state_dict().items()})
    return StableDiffusionInstructPix2PixPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd1():
    """The layers of Stable Diffusion 1: attention heads by number, 1×1 convolutions around transformers."""
    parts = seeded_checkpoint(rewards=False)
    config = {key: value for key, value in parts.unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**config | {"layers_per_block": 2})
    return pipeline_of(
        seeded(unet), parts.vae, parts.text_encoder, parts.tokenizer, EulerAncestralDiscreteScheduler(**SCHEDULE)
    )


def sd2():
    """Those of Stable Diffusion 2: texts of 1024 numbers by OpenCLIP, heads of one size, v-prediction."""
    words = dict.fromkeys([*byte_words(), "<|startoftext|>", "<|endoftext|>"])
    tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], bos_token="<|startoftext|>",
        eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="!", model_max_length=77,
    )  # fmt: skip
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=1024, intermediate_size=256, num_hidden_layers=1,
            num_attention_heads=16, projection_dim=512, hidden_act="gelu", max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=96, in_channels=8, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=1024, attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True,
    )  # fmt: skip
    scheduler = EulerAncestralDiscreteScheduler(**SCHEDULE, prediction_type="v_prediction")
    return pipeline_of(seeded(unet), seeded_checkpoint().vae, seeded(text_encoder), tokenizer, scheduler)


def other_vae():
    """A VAE of the same shape with other weights."""
    vae = AutoencoderKL.from_config(seeded_checkpoint().vae.config)
    torch.manual_seed(5)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else torch.nn.init.ones_(parameter)
    return vae.eval().requires_grad_(False)


def tiny_vae():
    """Of the layout of TAESD, narrow."""
    widths = (16,) * 4
    return seeded(AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths))


# ---- the names of the original code, as diffusers' scripts/convert_diffusers_to_original_stable_diffusion.py has them
RESNET = (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
          ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"))  # fmt: skip


def original_unet(unet):
    step = unet.config.layers_per_block + 1
    starts = {
        "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
        "conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
        "mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.",
    }  # fmt: skip
    for i in range(len(unet.down_blocks)):
        for j in range(step - 1):
            starts[f"down_blocks.{i}.resnets.{j}."] = f"input_blocks.{i * step + j + 1}.0."
            starts[f"down_blocks.{i}.attentions.{j}."] = f"input_blocks.{i * step + j + 1}.1."
        starts[f"down_blocks.{i}.downsamplers.0.conv."] = f"input_blocks.{(i + 1) * step}.0.op."
    for i, block in enumerate(unet.up_blocks):
        for j in range(step):
            starts[f"up_blocks.{i}.resnets.{j}."] = f"output_blocks.{i * step + j}.0."
            starts[f"up_blocks.{i}.attentions.{j}."] = f"output_blocks.{i * step + j}.1."
        place = 2 if hasattr(block, "attentions") else 1
        starts[f"up_blocks.{i}.upsamplers.0."] = f"output_blocks.{i * step + step - 1}.{place}."
    found = {}
    for key, value in unet.state_dict().items():
        old = next(start for start in starts if key.startswith(start))
        end = key.removeprefix(old)
        if "resnets" in old:
            for new_name, name in RESNET:
                end = end.replace(new_name, name)
        found[starts[old] + end] = value
    return found


def original_vae(vae):
    last = len(vae.config.block_out_channels) - 1
    found = {}
    for key, value in vae.state_dict().items():
        name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block", key)
        name = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
        name = re.sub(r"decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{last - int(m[1])}.block", name)
        name = re.sub(
            r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{last - int(m[1])}.upsample", name
        )
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "attentions" in name:
            for new, old in (("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"), ("to_q", "q"),
                             ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):  # fmt: skip
                name = name.replace(new, old)
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[name] = value
    return found


def original_clip(text_encoder):
    state = {f"transformer.text_model.{key}": value for key, value in text_encoder.state_dict().items()}
    return state | {"transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def original_open_clip(text_encoder):
    """With the last layer, which Stable Diffusion 2 does not use, and the projection."""
    names = (("encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj"),
             ("final_layer_norm", "ln_final"), ("embeddings.token_embedding", "token_embedding"),
             ("embeddings.position_embedding.weight", "positional_embedding"))  # fmt: skip
    state, found = text_encoder.state_dict(), {}
    for key, value in state.items():
        if match := re.fullmatch(r"(.+)self_attn\.q_proj\.(weight|bias)", key):
            value = torch.cat([state[f"{match[1]}self_attn.{letter}_proj.{match[2]}"] for letter in "qkv"])
            key = f"{match[1]}attn.in_proj_{match[2]}"
        elif re.search(r"self_attn\.[kv]_proj", key):
            continue
        for new, old in names:
            key = key.replace(new, old)
        found[f"model.{key}"] = value
    layers = text_encoder.config.num_hidden_layers
    found |= {key.replace("resblocks.0.", f"resblocks.{layers}."): value for key, value in found.items()}
    return found | {"model.text_projection": torch.zeros(1024, 1024), "model.logit_scale": torch.zeros(())}


def original_state(pipeline, ema=None):
    """All tensors of a single file; `ema` is a U-Net of averaged weights."""
    wide = pipeline.text_encoder.config.hidden_size == 1024
    text = original_open_clip if wide else original_clip
    parts = {
        "model.diffusion_model.": original_unet(pipeline.unet), "first_stage_model.": original_vae(pipeline.vae),
        "cond_stage_model.": text(pipeline.text_encoder),
    }  # fmt: skip
    state = {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}
    if ema is not None:
        flat = {f"diffusion_model{key}".replace(".", ""): value for key, value in original_unet(ema).items()}
        state |= {f"model_ema.{key}": value for key, value in flat.items()}
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return state


def save_state(state, path, dtype=torch.float16):
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    safetensors.torch.save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path)
    return path


def settings_only(folder, out):
    """A base: tokenizer and settings of a folder, without weights."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    return out


def as_hub_cache(folder, cache):
    """The folder as the Hugging Face cache has it: links of one revision into blobs."""
    model, snapshot = cache / "models--a--b", cache / "models--a--b" / "snapshots" / "0123abc"
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = model / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abc")
    return model
