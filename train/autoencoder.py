"""Train a small VAE on pictures of the miniature world.

    python -m mrc_edit.train.autoencoder OUT --photographs DIR --steps 700

Stable Diffusion's architecture at a hundredth of its size and 4× down instead of 8×: at 128 pixels
an object is ten latents wide, enough for its outline. Training starts from weights whose first three latents
are the picture averaged over 4×4 pixels, and so takes minutes instead of hours.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..core.errors import MRCError, run_command
from ..core.fidelity import psnr
from ..core.files import replace_folder
from ..model.checkpoint import write_weights
from ..model.weights import WEIGHTS
from .miniature.edits import artifacts, random_edit
from .miniature.photographs import load_photographs
from .miniature.scene import SIZE, render

CONFIG = {
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 4,
    "mid_block_add_attention": False,
    "sample_size": SIZE,
}
CROP = 64  # pixels
BATCH = 32
HELD_OUT = 64  # pictures that measure the trained VAE
ANCHOR, LINEAR = 8.0, 4.0  # see `start_at_averages`
KL_WEIGHT = 3e-6  # small, as in Stable Diffusion's VAE: bounds the latents without making them normal


class Pictures(Dataset[torch.Tensor]):
    """Endless pictures by index: crops of photographs and edited scenes, some with artifacts.

    Float32 `[3, crop, crop]` in -1…1.
    """

    def __init__(self, photographs: list[np.ndarray], seed: int, crop: int) -> None:
        self.photographs, self.seed, self.crop = photographs, seed, crop

    def __getitem__(self, index: int) -> torch.Tensor:
        rng = np.random.default_rng([self.seed, index])
        if rng.random() < 0.3:
            photograph = self.photographs[rng.integers(len(self.photographs))]
            y, x = (rng.integers(side - SIZE + 1) for side in photograph.shape[:2])
            picture = photograph[y : y + SIZE, x : x + SIZE].astype(np.float32)
        else:
            picture = render(random_edit(rng, self.photographs).target, self.photographs)
        if rng.random() < 0.1:
            picture = artifacts(rng, picture)
        y, x = rng.integers(SIZE - self.crop + 1, size=2)
        picture = picture[y : y + self.crop, x : x + self.crop]
        return torch.from_numpy(picture.transpose(2, 0, 1).copy()) / 127.5 - 1


@torch.no_grad()
def start_at_averages(vae: AutoencoderKL) -> None:
    """Set weights with which the first three latents are the colours averaged over a latent's pixels, without noise.

    The first three channels of every layer pass colours on unchanged; residual branches start at zero.
    GroupNorm would divide a picture by its own contrast: a constant channel in each group, `ANCHOR`,
    makes the divisor nearly constant. SiLU is close to the identity well above zero: `LINEAR` shifts
    colours there.
    """
    encoder, decoder = vae.encoder, vae.decoder
    blocks = [*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks]
    residuals = [resnet for block in blocks for resnet in block.resnets]
    for resnet in residuals:
        resnet.conv2.weight.zero_()
        resnet.conv2.bias.zero_()
    downsamplers = [block.downsamplers[0].conv for block in encoder.down_blocks[:-1]]
    passing = [  # convolutions that pass colours on
        encoder.conv_in,
        decoder.conv_in,
        encoder.conv_out,
        decoder.conv_out,
        vae.quant_conv,
        vae.post_quant_conv,
    ]
    passing += [resnet.conv_shortcut for resnet in residuals if resnet.conv_shortcut is not None]
    passing += [block.upsamplers[0].conv for block in decoder.up_blocks[:-1]]
    for conv in (*passing, *downsamplers):
        conv.weight[:3] = 0
        conv.bias[:3] = 0
        centre = conv.kernel_size[0] // 2
        for colour in range(3):
            if conv in downsamplers:
                conv.weight[colour, colour, :2, :2] = 1 / 4
            else:
                conv.weight[colour, colour, centre, centre] = 1
    for half, last in ((encoder, downsamplers[-1]), (decoder, decoder.up_blocks[-1].resnets[0].conv_shortcut)):
        norm = half.conv_norm_out
        group = norm.num_channels // norm.num_groups
        last.weight[group - 1 :: group] = 0
        last.bias[group - 1 :: group] = ANCHOR
        norm.weight.fill_(ANCHOR * (group - 1) ** 0.5 / group)  # the group's standard deviation
        norm.bias[:3] = ANCHOR / group + LINEAR  # its mean
        half.conv_out.bias[:3] = -LINEAR
    vae.quant_conv.weight[CONFIG["latent_channels"] :] *= 0.1  # the other half of the moments: log variances
    vae.quant_conv.bias[CONFIG["latent_channels"] :] = -8.0


def train(out: Path, photographs: Path | None, steps: int, seed: int) -> None:
    """Train for `steps` batches and write the new VAE folder `out`.

    Raises:
        MRCError: `out` exists, or `photographs` cannot be used.
    """
    if out.exists():
        raise MRCError(f"{out} exists already; give a folder that does not")
    torch.manual_seed(seed)
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    start_at_averages(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    average = EMAModel(vae.parameters(), decay=0.998, use_ema_warmup=True, power=0.75)
    loaded = load_photographs(photographs)
    loader = DataLoader(Pictures(loaded, seed, CROP), BATCH, sampler=range(steps * BATCH), num_workers=1)
    bar = tqdm(loader, desc="autoencoder", disable=None)
    for step, batch in enumerate(bar):
        remaining = 1 - step / steps
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, 3 * remaining, (step + 1) / 50)  # warm-up, constant, then linear to zero
        with torch.autocast("cpu", torch.bfloat16):
            batch = batch.to(memory_format=torch.channels_last)
            moments = vae.encode(batch).latent_dist
            decoded = vae.decode(moments.sample()).sample
        decoded = decoded.float()
        coarse = F.l1_loss(F.avg_pool2d(decoded, 4), F.avg_pool2d(batch, 4))
        loss = F.l1_loss(decoded, batch) + coarse + KL_WEIGHT * moments.kl().float().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.step(vae.parameters())
        bar.set_postfix(loss=f"{loss.item():.4f}")
    average.copy_to(vae.parameters())
    write(vae, Pictures(loaded, seed, SIZE), out, {"steps": steps, "seed": seed})


@torch.no_grad()
def write(vae: AutoencoderKL, pictures: Pictures, out: Path, record: dict) -> None:
    """Write the VAE folder, with the scaling factor that gives its latents a standard deviation of one."""
    batch = torch.stack([pictures[10**9 + i] for i in range(HELD_OUT)])  # never trained on
    latents = vae.encode(batch).latent_dist.mode()
    decoded = vae.decode(latents).sample.clamp(-1, 1)
    decibels = psnr(decoded.numpy(), batch.numpy(), peak=2)  # values are in -1…1
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    with replace_folder(out) as folder:
        vae.save_config(folder)
        write_weights(vae.state_dict(), folder / WEIGHTS["vae"])
        (folder / "record.json").write_text(json.dumps(record | {"psnr_db": round(decibels, 2)}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mrc_edit.train.autoencoder", description="Train a small VAE.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--photographs", type=Path, help="folder of photographs besides scikit-image's (default: none)")
    parser.add_argument("--steps", type=int, default=700, help="batches to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and pictures (default: %(default)s)")
    args = parser.parse_args()
    sys.exit(run_command(lambda: train(args.out, args.photographs, args.steps, args.seed)))


if __name__ == "__main__":
    main()
