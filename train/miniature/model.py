"""The untrained miniature model: tokenizer, text encoder and U-Net sized for two CPU cores.

    python -m mrc_edit.train.miniature.model OUT --vae VAE

A forward pass of the 5.6 M-parameter U-Net over 32×32 latents is 1.4 GFLOP, so a training step of
32 triplets is 0.14 TFLOP.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from ...core.defaults import Defaults
from ...core.errors import run_command
from ...model.checkpoint import Checkpoint, save_checkpoint
from ...model.seeded import byte_tokenizer, byte_words, small_text_encoder
from ...model.unet import MRCUNet
from .edits import PLACE_WORDS, WORDS
from .scene import BACKGROUNDS, COLOURS, PATTERNS, SHAPES

# what the trained model edits best with (docs/training.md)
DEFAULTS = Defaults(scheduler="euler", num_inference_steps=2, guidance_scale=1.0, image_guidance_scale=1.0)
TEXT_WIDTH = 96
TEXT_LENGTH = 40  # tokens; a reward text of three failures has 25
FAILURES = "None stayed did not changed nothing was added became something else rest of coloured spots and noise"


def vocabulary() -> list[str]:
    """All words of the world's instructions and reward texts."""
    sentences = [*itertools.chain(*WORDS.values()), *PLACE_WORDS.values(), *SHAPES, *COLOURS, *PATTERNS, *BACKGROUNDS]
    text = " ".join([*sentences, FAILURES]).replace("{it}", "").replace("{new}", "").replace("{where}", "")
    return sorted(set(text.replace(";", " ").split()))


def word_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges learned on the world's words; other words come out in pieces."""
    words = vocabulary()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=byte_words(),  # else letters get random numbers, by which merges of equal counts are ordered
    )
    tokenizer.train_from_iterator([" ".join(words).lower()], trainer)
    merges = [(first, second) for first, second in json.loads(tokenizer.to_str())["model"]["merges"]]
    return byte_tokenizer(merges, TEXT_LENGTH)


def miniature_checkpoint(vae_folder: Path, seed: int = 0) -> Checkpoint:
    """Everything untrained but the VAE; a plain InstructPix2Pix U-Net, without rewards."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    text_encoder = small_text_encoder(tokenizer, TEXT_WIDTH, 3, 3 * TEXT_WIDTH, TEXT_LENGTH)
    # CLIP initializes embeddings with a deviation of 0.02. Adam overwrites those in twenty steps, before the U-Net
    # uses the text, and all texts become alike. With 1 each word keeps its direction while it learns.
    torch.nn.init.normal_(text_encoder.get_input_embeddings().weight)
    vae = AutoencoderKL.from_pretrained(vae_folder, use_safetensors=True)
    unet = MRCUNet(
        rewards=False,
        sample_size=32,
        in_channels=2 * vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        layers_per_block=1,
        block_out_channels=(32, 96, 144),
        norm_num_groups=2,  # 16 channels or more each; groups of 4 channels blurred what should stay
        # Attention at 16×16 positions, where an object is 5 wide, can find the object that a text names
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # heads, as diffusers names it for SD 1.5
    )
    # Twice Stable Diffusion's betas: with those, the last timestep at 32×32 still shows the edit's mean colour.
    # So close to pure noise only velocity prediction is stable (arXiv 2305.08891)
    scheduler = EulerAncestralDiscreteScheduler.from_config(
        {
            "beta_start": 0.0017, "beta_end": 0.024, "prediction_type": "v_prediction",
            "beta_schedule": "scaled_linear", "steps_offset": 1,
            "clip_sample": False,  # read by DDIM alone, whose default would clip latents as if they were pixels
        }
    )  # fmt: skip
    return Checkpoint(unet, vae, text_encoder, tokenizer, scheduler, DEFAULTS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mrc_edit.train.miniature.model", description="The untrained mini.")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument("--vae", type=Path, required=True, help="folder that mrc_edit.train.autoencoder wrote")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: %(default)s)")
    args = parser.parse_args()
    sys.exit(run_command(lambda: save_checkpoint(miniature_checkpoint(args.vae, args.seed), args.out)))


if __name__ == "__main__":
    main()
