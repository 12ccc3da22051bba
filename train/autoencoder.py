"""Train a small VAE on images of the miniature world.

    python -m mrc_edit.train.autoencoder OUT --photographs DIR

Stable Diffusion's architecture at 1/32 of its size, and 4× down instead of 8×: at 128 pixels an object is ten latents
wide, enough for its outline. Training starts from weights with which three latents are the averages of 4×4 pixels, and
three the brightness differences inside them.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..core.errors import MRCError, run_command
from ..core.fidelity import psnr
from ..core.files import replace_folder, write_json
from ..model.checkpoint import write_weights
from ..model.weights import WEIGHTS
from .miniature.edits import artifacts, random_edit
from .miniature.photographs import load_photographs
from .miniature.scene import SIZE, render
from .run_folder import run_folder
from .state import TrainState, load_state, mean_loss, write_state
from .workers import load

CONFIG = {
    "block_out_channels": (32, 64, 128),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 6,
    "mid_block_add_attention": False,
    "sample_size": SIZE,
}
STEPS, BATCH = 8000, 4
RATE, WARMUP = 5e-4, 200  # highest learning rate, and the steps in which it rises; then a cosine
SAVE_EVERY = 50  # steps
HELD_OUT = 64  # pictures that measure the trained VAE
ANCHOR, LINEAR = 16.0, 6.0  # see `start_at_averages`
HAAR = ([[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]])
KL_WEIGHT = 5e-4  # small, as in Stable Diffusion's VAE: bounds the latents without making them normal


class Pictures(Dataset[Tensor]):
    """Endless pictures by number, float32 `[3, 128, 128]` in -1…1: photographs and edited scenes, some with
    artifacts."""

    def __init__(self, photographs: list[np.ndarray], seed: int) -> None:
        self.photographs, self.seed = photographs, seed

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng([self.seed, index])
        if rng.random() < 0.3:
            photograph = self.photographs[rng.integers(len(self.photographs))]
            y, x = (rng.integers(side - SIZE + 1) for side in photograph.shape[:2])
            picture = photograph[y : y + SIZE, x : x + SIZE].astype(np.float32)
        else:
            picture = render(random_edit(rng, self.photographs).target, self.photographs)
        if rng.random() < 0.1:
            picture = artifacts(rng, picture)
        return torch.from_numpy(picture.transpose(2, 0, 1).copy()) / 127.5 - 1


class Batches(Dataset[Tensor]):
    """`[BATCH, 3, 128, 128]` of `Pictures` by step."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __getitem__(self, step: int) -> Tensor:
        return torch.stack([self.pictures[step * BATCH + i] for i in range(BATCH)])


@torch.no_grad()
def start_at_averages(vae: AutoencoderKL) -> None:
    """Set weights with which the first three latents are the colours averaged over a latent's pixels, without noise.

    The next three are the brightness of a latent's left half less its right, upper less lower, and of one diagonal
    less the other. Decoding repeats the colours.

    The first channels of every layer pass these on unchanged; residual branches start at zero.
    GroupNorm would divide a picture by its own contrast: a constant channel in each group, `ANCHOR`,
    makes the divisor nearly constant, and the negatives of what is passed on make the mean constant.
    SiLU is close to the identity well above zero: `LINEAR` shifts colours there.
    """
    encoder, decoder, channels = vae.encoder, vae.decoder, vae.config.latent_channels
    residuals = [module for module in vae.modules() if isinstance(module, ResnetBlock2D)]
    for resnet in residuals:
        resnet.conv2.weight.zero_()
        resnet.conv2.bias.zero_()
    downsamplers = [block.downsamplers[0].conv for block in encoder.down_blocks[:-1]]
    passing = [conv for half in (encoder, decoder) for conv in (half.conv_in, half.conv_out)]
    passing += [vae.quant_conv, vae.post_quant_conv]
    passing += [resnet.conv_shortcut for resnet in residuals if resnet.conv_shortcut is not None]
    passing += [block.upsamplers[0].conv for block in decoder.up_blocks[:-1]]
    for conv in passing:
        centre = conv.kernel_size[0] // 2
        for channel in range(min(channels, conv.in_channels, conv.out_channels)):
            only(conv, channel, channel, torch.ones(1, 1), centre)
    for conv in downsamplers:
        for colour in range(3):
            only(conv, colour, colour, torch.full((2, 2), 1 / 4), 0)
    for channel, signs in enumerate(HAAR[: channels - 3], 3):
        for colour in range(3):
            only(downsamplers[-1], channel, colour, torch.tensor(signs) / 6, 0, clear=not colour)
    for half, block, passed in ((encoder, encoder.down_blocks[-1], channels), (decoder, decoder.up_blocks[-1], 3)):
        norm, last = half.conv_norm_out, block.resnets[0].conv_shortcut  # after it only sums with zeros
        group = norm.num_channels // norm.num_groups
        last.weight[passed:] = 0
        last.bias[passed:] = 0
        for channel in range(passed):
            last.weight[passed + channel, channel] = -1
        last.bias[group - 1 :: group] = ANCHOR
        norm.weight.fill_(ANCHOR * (group - 1) ** 0.5 / group)  # the group's standard deviation
        norm.bias[:passed] = ANCHOR / group + LINEAR  # its mean
        half.conv_out.bias[:passed] = -LINEAR
    vae.quant_conv.weight[channels:] *= 0.1  # the other half of the moments: log variances
    vae.quant_conv.bias[channels:] = -8.0


def only(conv: nn.Conv2d, out: int, source: int, kernel: Tensor, start: int, clear: bool = True) -> None:
    """Make channel `out` this small kernel, from row and column `start`, on channel `source`, and no bias.

    Without `clear` it is added to what `out` is already.
    """
    assert conv.bias is not None
    if clear:
        conv.weight[out] = 0
        conv.bias[out] = 0
    rows, columns = kernel.shape
    conv.weight[out, source, start : start + rows, start : start + columns] = kernel


def new_state(seed: int) -> tuple[AutoencoderKL, TrainState]:
    """The VAE before its first step, and what trains it."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    start_at_averages(vae)
    trained = list(vae.parameters())
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = EMAModel(trained, decay=0.998, use_ema_warmup=True, power=0.75)
    return vae, TrainState(trained, average, optimizer)


def train(out: Path, photographs: str | None, steps: int, seed: int) -> Path:
    """Train in the run folder `out` and write the VAE folder `out/vae`; returns its path. A stopped run goes on.

    Raises:
        MRCError: `photographs` cannot be used, `out` has states of other settings or a finished run, or another run
            is writing there.
    """
    if (out / "vae").exists():
        raise MRCError(f"{out / 'vae'} is there already; give another folder, or remove it")
    with run_folder(out, resume=True, overwrite=False):
        pictures = Pictures(load_photographs(photographs), seed)
        vae, state = new_state(seed)
        config = {"steps": steps, "seed": seed, "photographs": photographs, "batch": BATCH, "architecture": CONFIG}
        config = json.loads(json.dumps(config))  # as a state has it
        if saved := load_state(out, "latest", config):
            state.restore(*saved)
        batches = load(Batches(pictures), range(state.step, steps), workers=1)
        bar = tqdm(batches, desc="autoencoder", total=steps, initial=state.step, disable=None)
        for batch in bar:
            started = time.perf_counter()
            loss = train_step(vae, state, batch, steps, seed)
            state.finish_step(loss, time.perf_counter() - started)
            if state.step % SAVE_EVERY == 0 or state.step == steps:
                write_state(out, config, state, state.tensors(), limit=2)
            bar.set_postfix(loss=f"{mean_loss(state.curve[-50:]):.4f}")
        state.average.copy_to(state.trained)
        write(vae, pictures, out, training_record(config, state))
    return out / "vae"


def train_step(vae: AutoencoderKL, state: TrainState, batch: Tensor, steps: int, seed: int) -> float:
    """One optimizer step; returns the loss."""
    torch.manual_seed((seed * 1_000_003 + state.step) % 2**32)  # for the noise of the latents
    warm = min(1.0, (state.step + 1) / WARMUP)
    for group in state.optimizer.param_groups:
        group["lr"] = RATE * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * state.step / steps)))
    batch = batch.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        moments = vae.encode(batch).latent_dist
        decoded = vae.decode(moments.sample()).sample.float()
    kl = moments.kl().float().mean() / moments.mean[0].numel()
    loss = F.l1_loss(decoded, batch) + 4 * F.mse_loss(decoded, batch) + KL_WEIGHT * kl
    state.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.trained, 1.0)
    state.optimizer.step()
    state.average.step(state.trained)
    return loss.item()


def training_record(config: dict, state: TrainState) -> dict:
    """Settings, versions, losses and seconds."""
    return {
        "config": config,
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers)},
        "seconds": round(sum(seconds for _, _, seconds in state.curve)),
        "loss_every_50_steps": state.mean_losses(50),
    }


@torch.no_grad()
def write(vae: AutoencoderKL, pictures: Pictures, out: Path, record: dict) -> None:
    """Write `out/training.json`, and `out/vae` with the scaling factor that gives its latents a standard deviation of
    one."""
    batch = torch.stack([pictures[10**9 + i] for i in range(HELD_OUT)])  # never trained on
    latents = vae.encode(batch).latent_dist.mode()
    decoded = vae.decode(latents).sample.clamp(-1, 1)
    decibels = psnr(decoded.numpy(), batch.numpy(), peak=2)  # values are in -1…1
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    write_json(out / "training.json", record | {"psnr_db": round(decibels, 2)})
    with replace_folder(out / "vae") as folder:
        vae.save_config(folder)
        write_weights(vae.state_dict(), folder / WEIGHTS["vae"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mrc_edit.train.autoencoder", description="Train a small VAE.")
    parser.add_argument("out", type=Path, help="folder of the run; the VAE is OUT/vae. A stopped run goes on")
    parser.add_argument("--photographs", help="folder of photographs besides scikit-image's (default: none)")
    parser.add_argument("--steps", type=int, default=STEPS, help="batches to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and images (default: %(default)s)")
    args = parser.parse_args()

    def run() -> None:
        if args.seed < 0:
            raise MRCError(f"--seed is {args.seed}; give a number from 0 up")
        print(train(args.out, args.photographs, args.steps, args.seed))

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
