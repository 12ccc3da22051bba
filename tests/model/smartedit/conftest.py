"""SmartEdit's golden data: a small part in golden.npz, all of it where `MRC_REFERENCE` has a sibling `smartedit`.

`golden.npz` and `tokenizer.model` are cut from that golden data; see its README for how it was made.
"""

import json
import shutil
import subprocess
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch


def weight(key: str, shape) -> torch.Tensor:
    """The golden data's weight of that released name: seeded by the name, scaled by the inputs of a row."""
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if noise.ndim > 1:
        return noise / noise[0].numel() ** 0.5
    return 1 + 0.1 * noise if key.endswith("weight") else 0.05 * noise


@pytest.fixture(scope="session")
def golden():
    return np.load(Path(__file__).with_name("golden.npz"))


@pytest.fixture(scope="session")
def released_golden(reference) -> Path:
    """The folder of all golden data of SmartEdit."""
    folder = reference.parent / "smartedit" / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden data of SmartEdit at {folder}")
    return folder


@pytest.fixture(scope="session")
def seed_weights():
    """`seed_weights(module, root="")`: give a module the golden data's weights, in evaluation mode."""

    @torch.no_grad()
    def seed(module, root: str = ""):
        for key, value in module.state_dict().items():
            value.copy_(weight(root + key, value.shape))
        return module.eval().requires_grad_(False)

    return seed


HERE = Path(__file__).parent
LLM = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8, "hidden_act": "quick_gelu", "projection_dim": 48,
}  # fmt: skip
ROWS = 455  # 420 pieces and 35 tokens
QFORMER_HEADS = 4


def flat(state: dict) -> dict:
    """The same as views of one buffer, as the release seems to hold them."""
    buffer, views, start = torch.cat([value.flatten() for value in state.values()]), {}, 0
    for key, value in state.items():
        views[key] = buffer[start : start + value.numel()].view(value.shape)
        start += value.numel()
    return views


def llm_state() -> dict:
    from transformers import LlamaConfig, LlamaForCausalLM

    shapes = {
        key: value.shape for key, value in LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, **LLM)).state_dict().items()
    }
    state = {
        "model.base_model.model." + key.removeprefix("model."): weight(key, shape) for key, shape in shapes.items()
    }
    for layer in range(LLM["num_hidden_layers"]):
        attention = f"model.base_model.model.layers.{layer}.self_attn."
        state[attention + "rotary_emb.inv_freq"] = torch.ones(8)
        for name in ("q_proj", "v_proj"):
            state[f"{attention}{name}.lora_A.default.weight"] = weight(f"{layer}{name}A", (8, 64))
            state[f"{attention}{name}.lora_B.default.weight"] = weight(f"{layer}{name}B", (64, 8))
    return state


def write_release(folder: Path) -> None:
    """A tiny SmartEdit with seeded weights in the released layout, of 0.23 M parameters without the U-Net."""
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from mrc_edit.model import save_checkpoint
    from mrc_edit.model.seeded import seeded_checkpoint
    from mrc_edit.model.smartedit.bim import BIM
    from mrc_edit.model.smartedit.qformer import QFormer

    checkpoint = seeded_checkpoint(rewards=False)
    save_checkpoint(checkpoint, folder / "sd")
    shutil.rmtree(folder / "sd" / "unet")
    llm = llm_state()
    qformer = QFormer(77, 64, QFORMER_HEADS, 128, 4, 64).state_dict()
    queries = {key: weight(key, value.shape) for key, value in qformer.items()}
    queries["sd_qformer.embeddings.position_ids"] = torch.arange(512)[None].float()
    queries["lm_head.weight"] = llm.pop("model.base_model.model.lm_head.weight")
    queries |= {"mm_projector.weight": weight("mm_projector.weight", (64, 48)), "mm_projector.bias": torch.zeros(64)}
    files = {
        "LLM-15000/adapter_model.bin": llm,
        "embeddings_qformer/checkpoint-15000_embeddings_qformer.bin": queries,
        "modulate-15000/adapter_model.bin": {
            k: weight(k, v.shape) for k, v in BIM(48, 64, 32, 96).state_dict().items()
        },
        "unet-15000/adapter_model.bin": {f"unet.{k}": v for k, v in checkpoint.unet.state_dict().items()},
    }
    for name, state in files.items():
        (folder / name).parent.mkdir()
        torch.save(flat(state), folder / name)
    vision = CLIPVisionModel(CLIPVisionConfig(**VISION))
    vision.config.save_pretrained(folder / "vision")
    keys = {"vision_model." + k.removeprefix("vision_model."): v.shape for k, v in vision.state_dict().items()}
    save_file({key: weight("vision." + key, shape) for key, shape in keys.items()}, folder / "vision/model.safetensors")
    (folder / "tokenizer").mkdir()
    shutil.copy(HERE / "tokenizer.model", folder / "tokenizer" / "tokenizer.model")


@pytest.fixture(scope="session")
def release(once) -> Path:
    """A tiny SmartEdit as it is downloaded."""
    return once("smartedit-release", write_release)


@pytest.fixture(scope="session")
def smartedit(release, once) -> Path:
    """The same, converted, with two templates."""
    from mrc_edit.convert.smartedit import convert_smartedit
    from mrc_edit.model.smartedit.tokens import OWN

    def make(folder: Path) -> None:
        strings = folder.with_suffix(".json")
        templates = [*asdict(OWN)["templates"], {"human": "[cap], please", "gpt": "There it is [img]."}]
        strings.write_text(json.dumps(asdict(OWN) | {"templates": templates, "provenance": "ours"}))
        convert_smartedit(release, folder, strings, qformer_heads=QFORMER_HEADS)

    return once("smartedit", make)


@pytest.fixture(scope="session")
def released_smartedit(released_golden, once) -> Path:
    """The golden data's own tiny SmartEdit, converted with the release's strings."""
    from mrc_edit.convert.smartedit import convert_smartedit

    def make(folder: Path) -> None:
        source, kit = folder.with_name("golden-release"), released_golden.parent / "kit"
        script = kit / "make_smartedit_checkpoint.py"
        subprocess.run([sys.executable, str(script), "tiny", str(source)], cwd=kit, check=True)
        convert_smartedit(source, folder, kit / "templates.json", qformer_heads=QFORMER_HEADS)

    return once("golden-smartedit", make)
