"""`mrc-edit --lora` and `--embedding` are `Engine.from_pretrained(lora=…, embeddings=…)`."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mrc_edit.engine import Engine, command


@pytest.fixture
def files(tmp_path):
    """A LoRA and a token of two vectors, for the seeded models."""
    generator = torch.Generator().manual_seed(1)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {"down": (4, 64), "up": (64, 4)}
    factors = {f"{name}.lora_{role}.weight": torch.randn(shapes[role], generator=generator) for role in shapes}
    save_file(factors, tmp_path / "style.safetensors")
    save_file({"emb_params": torch.randn(2, 64, generator=generator)}, tmp_path / "cat.safetensors")
    return tmp_path / "style.safetensors", tmp_path / "cat.safetensors"


def test_the_flags_are_the_arguments(tiny, files, photo, tmp_path, monkeypatch, capsys):
    style, cat = files
    Image.fromarray(photo).save(tmp_path / "photo.png")
    options = ["--lora", f"{style}:0.8", "--embedding", f"<cat>={cat}", "--steps", "1", "--seed", "1"]
    monkeypatch.setattr(
        sys, "argv",
        ["mrc-edit", str(tiny), str(tmp_path / "photo.png"), "a <cat>", "-o", str(tmp_path / "out.png"),
         "--resolution", "0", *options],
    )  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        command.main()
    found = np.asarray(Image.open(tmp_path / "out.png"))
    arguments = {"seed": 1, "resolution": 0, "num_inference_steps": 1}

    def edited(**adapters):
        return np.asarray(Engine.from_pretrained(tiny, **adapters).edit(photo, "a <cat>", **arguments).images[0])

    both = {"lora": {style: 0.8}, "embeddings": {"<cat>": cat}}
    np.testing.assert_array_equal(found, edited(**both))
    for name in both:
        assert not np.array_equal(found, edited(**{name: both[name]}))
