"""Memory and operations of full-size training, counted from shapes: nothing is computed, no GPU is needed.

    python -m mrc_edit.bench.training_memory --resolution 256

Counts PyTorch's tensors, not the allocator's reserve, the kernels' workspaces or what other programs hold.
"""

import argparse
import sys
from contextlib import nullcontext

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mrc_edit.bench.launches import SD15
from mrc_edit.bench.options import command_parser, require_at_least
from mrc_edit.bench.report import Column, Row, add_output_options, table, write_report
from mrc_edit.core.errors import run_command
from mrc_edit.model import MRCUNet

FLOAT32 = 4  # bytes
# Copies of every trained parameter that a state holds, all in float32: weights, average, gradients, AdamW's two moments
COPIES = 5
TEXT, TEXT_LENGTH = 768, 77
COLUMNS = [
    Column("arithmetic", "{precision}"),
    Column("gradient checkpointing", "{checkpointing}"),
    Column("weights, average, gradients, moments", "{states:.1f} GB", scale=1e-9),
    Column("of that on each of the devices with --shard", "{sharded:.1f} GB", scale=1e-9),
    Column("weights in bfloat16", "{casts:.1f} GB", scale=1e-9),
    Column("activations of an image", "{activations:.2f} GB", scale=1e-9),
    Column("operations of an image", "{operations:.2f} TFLOP", scale=1e-12),
]


def pass_of(unet: MRCUNet, images: int, latents: int, precision: str) -> tuple[float, float]:
    """Bytes that the forward pass keeps for the backward pass, parameters aside, and operations of both passes."""
    own = {storage(parameter) for parameter in unet.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if storage(tensor) not in own:
            kept[storage(tensor)] = tensor  # alive, so that its storage's address stays its own
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    inputs = torch.zeros(images, 8, latents, latents), torch.zeros(images, dtype=torch.int64)
    conditions = torch.zeros(images, TEXT_LENGTH, TEXT), torch.zeros(images, 3), torch.zeros(images, TEXT)
    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            loss = unet(*inputs, *conditions).float().square().mean()
        loss.backward()
    return float(sum(t.untyped_storage().nbytes() for t in kept.values())), float(counter.get_total_flops())


def storage(tensor: Tensor) -> int:
    """The address of what holds the tensor's numbers."""
    return tensor.untyped_storage()._cdata


def count(resolution: int, devices: int) -> list[Row]:
    """A row for each precision with and without gradient checkpointing."""
    rows: list[Row] = []
    for precision in ("no", "bf16"):
        for checkpointing in (False, True):
            with FakeTensorMode():
                unet = MRCUNet(**SD15).train()
                if checkpointing:
                    unet.enable_gradient_checkpointing()  # type: ignore[operator]  # a method of diffusers
                (one, operations), (two, _) = (pass_of(unet, n, resolution // 8, precision) for n in (1, 2))
            states = COPIES * FLOAT32 * sum(parameter.numel() for parameter in unet.parameters())
            rows.append(
                {
                    "precision": "float32" if precision == "no" else precision,
                    "checkpointing": "yes" if checkpointing else "no",
                    "states": float(states),
                    "sharded": states / devices,
                    "casts": 2 * one - two,
                    "activations": two - one,
                    "operations": operations,
                }
            )
    return rows


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("--resolution", type=int, default=256, help="pixels of a side (default %(default)s)")
    parser.add_argument("--devices", type=int, default=8, help="devices that share with --shard (default %(default)s)")
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, resolution=64, devices=1)
    rows = count(args.resolution, args.devices)
    print(table(COLUMNS, rows).markdown())
    write_report(args, {"resolution": args.resolution, "devices": args.devices, "rows": rows}, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
