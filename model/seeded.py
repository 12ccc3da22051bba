"""A small checkpoint with seeded random weights, for tests and for trying the tools without a model.

    python -m mrc_edit.model.seeded OUT

It has every part of a released checkpoint; its edits are noise.
"""

import argparse
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..core.errors import run_command
from ..core.files import anything, nothing
from .checkpoint import Checkpoint, Module, save_checkpoint
from .unet import MRCUNet

TEXT_WIDTH = 64


def seeded_checkpoint(rewards: bool = True) -> Checkpoint:
    """The checkpoint in memory: a 1 M-parameter U-Net over two levels, an 8× VAE, a byte tokenizer."""
    tokenizer = byte_tokenizer()
    unet = MRCUNet(
        rewards=rewards,
        sample_size=32,
        in_channels=8,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.18215,
        sample_size=256,
    )
    text_encoder = small_text_encoder(tokenizer, TEXT_WIDTH, layers=2, feed_forward=2 * TEXT_WIDTH, length=77)
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    return Checkpoint(seeded(unet), seeded(vae), seeded(text_encoder), tokenizer, scheduler)


def small_text_encoder(
    tokenizer: CLIPTokenizer, width: int, layers: int, feed_forward: int, length: int
) -> CLIPTextModel:
    """An untrained CLIP text encoder of four heads for texts of `length` tokens."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=4,
            projection_dim=width,
            max_position_embeddings=length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def seeded(module: Module) -> Module:
    """Fill every parameter from a generator seeded by its key, scaled by its fan-in."""
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            generator = torch.Generator(value.device).manual_seed(zlib.crc32(key.encode()))
            noise = torch.randn(value.shape, generator=generator, device=value.device)
            if value.ndim > 1:
                value.copy_(noise / noise[0].numel() ** 0.5)
            else:
                value.copy_(0.1 * noise + (1.0 if key.endswith("weight") else 0.0))
    return module.eval().requires_grad_(False)


def byte_words() -> list[str]:
    """CLIP's 512 smallest tokens: every byte, inside a word and at its end."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [chr(256 + n) for n in range(256 - len(printable))]
    characters = [chr(byte) for byte in printable] + others
    return [*characters, *(c + "</w>" for c in characters)]


def byte_tokenizer(merges: Sequence[tuple[str, str]] = (), length: int = 77) -> CLIPTokenizer:
    """CLIP's tokenizer with these merges alone; with none it has one token a byte, 514 in all."""
    words = dict.fromkeys([*byte_words(), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"])
    special = {f"{kind}_token": "<|endoftext|>" for kind in ("eos", "unk", "pad")}
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=list(merges),
        bos_token="<|startoftext|>",
        model_max_length=length,
        **special,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mrc_edit.model.seeded", description="Write a random checkpoint.")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument(
        "--plain", action="store_true", help="write an InstructPix2Pix model, without rewards (default: no)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT whatever it holds (default: no)")
    args = parser.parse_args()
    check = anything if args.overwrite else nothing
    sys.exit(run_command(lambda: save_checkpoint(seeded_checkpoint(rewards=not args.plain), args.out, check)))


if __name__ == "__main__":
    main()
