"""The kernels against eager PyTorch, each only after it was held against its float64 reference.

    python -m mrc_edit.bench.operators                  CPU: interleaved timings
    python -m mrc_edit.bench.operators --device cuda    the same with events on a GPU
    python -m mrc_edit.bench.operators --resources      what the compiler made of the Triton kernels; needs no GPU

`--json` writes the numbers.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from ..core.errors import MRCError, run_command
from ..kernels import ops
from ..kernels.group_norm_silu.reference import group_norm_silu
from ..kernels.guided_step import guided_step
from ..kernels.guided_step.reference import guided_step as reference_step
from ..kernels.reward_block.reference import reward_block
from ..model.graphs import UNetStep, cross_attentions, resnets
from ..model.rewards import RewardConditioning
from ..model.unet import MRCUNet

BRANCHES = 3
CHANNELS, GROUPS = 320, 32  # of the released U-Net's first level
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LEVELS = ((320, 64), (640, 32), (1280, 16), (1280, 8))  # channels and side of the released U-Net's levels
SD15: dict[str, Any] = {"sample_size": 64, "in_channels": 8, "cross_attention_dim": 768}


@dataclass(frozen=True)
class Case:
    """`eager` and `ours` do the same; `error` is how far ours is from the float64 reference."""

    name: str
    eager: Callable[[], object]
    ours: Callable[[], object]
    error: float
    tolerance: float


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def wide(values: list) -> list:
    return [[w.double() for w in v] if isinstance(v, list) else v.double() if isinstance(v, Tensor) else v
            for v in values]  # fmt: skip


class RewardModules(RewardConditioning, nn.Module):
    """The released reward modules alone."""


def reward_case(side: int, dtype: torch.dtype, device: str) -> Case:
    torch.manual_seed(0)
    layers = RewardModules()
    layers.build_rewards(CHANNELS, 768, GROUPS, ())
    layers = layers.eval().to(device, dtype)
    hidden = torch.randn(BRANCHES, CHANNELS, side, side, device=device, dtype=dtype)
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    tokens = torch.randn(BRANCHES, 2, CHANNELS, device=device, dtype=dtype)
    arguments = [hidden, *layers.folded_attention(tokens), list(layers.reward_weights()), GROUPS]
    error = relative_error(ops.reward_block(*arguments), reward_block(*wide(arguments)))
    return Case(
        f"reward_block {side}×{side}",
        lambda: layers.reward_layer(hidden, tokens),
        lambda: ops.reward_block(*arguments),
        error,
        TOLERANCE[dtype],
    )


def group_norm_case(channels: int, side: int, dtype: torch.dtype, device: str) -> Case:
    torch.manual_seed(0)
    hidden = torch.randn(BRANCHES, channels, side, side, device=device, dtype=dtype)
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels, device=device, dtype=dtype)
    offset = torch.randn(BRANCHES, channels, device=device, dtype=dtype)
    arguments = [hidden, weight, bias, GROUPS, 1e-5, offset, True]
    return Case(
        f"group_norm_silu {channels}×{side}×{side}",
        lambda: F.silu(F.group_norm(hidden + offset[..., None, None], GROUPS, weight, bias, 1e-5)),
        lambda: ops.group_norm_silu(*arguments),
        relative_error(ops.group_norm_silu(*arguments), group_norm_silu(*wide(arguments))),
        TOLERANCE[dtype],
    )


def guided_case(side: int, device: str) -> Case:
    """One image, three branches on two inputs, an ancestral step."""
    random = np.random.default_rng(0)
    shape = (4, side, side)

    def normal(*dims: int) -> np.ndarray:
        return random.standard_normal(dims).astype(np.float32)

    noise, latents, data, fresh = normal(BRANCHES, *shape), normal(1, *shape), normal(1, *shape), normal(1, *shape)
    guidance, sample, item = np.array([[7.5, -6.0, -0.5]], np.float32), normal(2, 8, side, side), np.array([0, 0])
    coefficients, to_data, scale = np.array([0.9, -0.2, 0.1, 0.05]), np.array([1.0, -0.7]), 0.3
    doubles = [array.astype(np.float64) for array in (noise, guidance, latents, data, fresh)]
    settings = [coefficients, to_data, scale, item, sample.astype(np.float64)]
    truth = reference_step(*doubles, *settings)
    arrays = (noise, guidance, latents, data, fresh, coefficients.astype(np.float32), to_data.astype(np.float32))
    tensors = [torch.from_numpy(a.copy()).to(device) for a in arrays]
    on, own = tensors[2:4], [a.copy() for a in (latents, data, sample)]
    target, index = torch.from_numpy(sample.copy()).to(device), torch.from_numpy(item).to(device)
    source = target[:, 4:].clone()

    def eager() -> tuple[Tensor, Tensor, Tensor]:
        n, g, x, d, z, (a, b, c, e), (p, q) = tensors
        epsilon = (g @ n.flatten(1)).unflatten(1, shape)
        after = a * x + b * epsilon + c * d + e * z
        return after, p * x + q * epsilon, torch.cat([scale * after[index], source], dim=1)

    if device == "cuda":
        from ..kernels.guided_step.triton_kernel import guided_step as triton_step

        in_place = [*tensors, torch.tensor([scale], device=device), index, target]

        def ours() -> None:
            triton_step(*in_place)

        ours()
        found = [t.cpu() for t in (*on, target)]
    else:

        def ours() -> None:
            guided_step(noise, guidance, own[0], own[1], fresh, coefficients, to_data, scale, item, own[2])

        ours()
        found = [torch.from_numpy(a) for a in own]
    error = max(relative_error(f, torch.from_numpy(t)) for f, t in zip(found, truth, strict=True))
    return Case(f"guided_step {side}×{side}", eager, ours, error, 1e-5)


def cases(dtype: torch.dtype, device: str) -> list[Case]:
    """Raises MRCError for a kernel that is wrong: no speed is told of it."""
    found = [reward_case(side, dtype, device) for side in (64, 32)]
    found += [guided_case(side, device) for side in (64, 32)]
    found += [group_norm_case(*level, dtype, device) for level in LEVELS]
    for case in found:
        if not case.error <= case.tolerance:
            raise MRCError(
                f"{case.name} is {case.error:.1e} from its reference, more than {case.tolerance:.0e}; "
                "run pytest tests/kernels before timing it"
            )
    return found


def seconds(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    before = time.perf_counter()
    function()
    return time.perf_counter() - before


@torch.inference_mode()
def timings(dtype: torch.dtype, device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of both, and the ratio eager/ours round by round."""
    report = {}
    for case in tqdm(cases(dtype, device), desc="kernels", disable=None):
        for _ in range(3):
            case.eager()
            case.ours()
        pairs = [(seconds(case.eager, device), seconds(case.ours, device)) for _ in range(rounds)]
        ratios = [eager / ours for eager, ours in pairs]
        report[case.name] = {
            "eager_s": median(eager for eager, _ in pairs),
            "ours_s": median(ours for _, ours in pairs),
            "speedup": median(ratios),
            "least": min(ratios),
            "greatest": max(ratios),
            "error": case.error,
        }
    return report


class Launches(TorchDispatchMode):
    """Counts the operators that would each be a launch on a GPU: all but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        free = func.is_view or "empty" in func.name() or func.name() in ("aten::detach", "aten::_to_copy.meta")
        # statistics, then the block itself
        self.count += 2 if func.name() == "mrc::reward_block" else not free
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def launches(side: int = 64) -> dict[str, int]:
    """Launches of one step of the released U-Net with three branches, counted without computing it."""
    with torch.device("meta"):
        unet = MRCUNet(**SD15).eval()
        three = torch.empty(BRANCHES, 8, side, side)
        states, scores, text = torch.empty(BRANCHES, 77, 768), torch.empty(BRANCHES, 3), torch.empty(BRANCHES, 768)
        folded = [torch.empty(2, *rest) for rest in ((8, CHANNELS), (8, 1), (CHANNELS, 1), (CHANNELS, 8))]
        time_bias = torch.empty(2, sum(resnet.out_channels for resnet in resnets(unet)))
        text_kv = torch.empty(BRANCHES, 77, sum(2 * attention.inner_dim for attention in cross_attentions(unet)))
        branch, guidance = torch.empty(BRANCHES, dtype=torch.int64), torch.empty(1, BRANCHES)
        with Launches() as eager:
            unet(three, torch.empty(()), states, scores, text)
        counts = {"eager": eager.count}
        for name, fused in (("step graph", False), ("step graph with kernels", True)):
            with Launches() as ours:
                UNetStep(unet, fused)(three[:2], branch, guidance, time_bias, text_kv, *folded)
            counts[name] = ours.count
    return counts


def roofline(dtype: torch.dtype, side: int = 64) -> dict[str, dict[str, float]]:
    """Operations and bytes a launch must do at least, at `side`×`side` with three branches."""
    positions, width = BRANCHES * side * side, torch.finfo(dtype).bits // 8
    maps, matrix = positions * CHANNELS * width, CHANNELS * CHANNELS
    latents = 4 * side * side
    return {
        # four products a position, gates and updates of eight heads
        "reward_block": {"flop": 2 * positions * (4 * matrix + 16 * CHANNELS), "bytes": 2 * maps + 4 * matrix * width},
        "reward_statistics": {"flop": 4 * positions * CHANNELS, "bytes": maps},
        "group_norm_silu": {"flop": 10 * positions * CHANNELS, "bytes": 2 * maps},
        "guided_step": {
            "flop": latents * (2 * BRANCHES + 12),
            "bytes": latents * (BRANCHES * width + 5 * 4 + 2 * width),
        },
    }


def resource_report(dtype: torch.dtype) -> list[dict[str, Any]]:
    from ..kernels.cubins import ARCHITECTURES, compile_kernel, resources, specializations

    jobs = [(sm, of) for sm in ARCHITECTURES for of in specializations(CHANNELS, GROUPS, dtype, sm)]
    paper = roofline(dtype)
    return [
        {"kernel": of.name, "sm": sm, **resources(compile_kernel(of, sm)), **paper[of.name]}
        for sm, of in tqdm(jobs, desc="compile", disable=None)
    ]


def table(rows: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([cell(row[name]) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mrc_edit.bench.operators", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default float32, on CUDA float16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--resources", action="store_true", help="registers, spills, instructions; launches a step")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    def run() -> None:
        if args.rounds < 1:
            raise MRCError(f"--rounds is {args.rounds}; give a number from 1 up")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise MRCError("--device is cuda and PyTorch sees no GPU; give cpu, or --resources, which needs none")
        on_gpu = args.resources or args.device == "cuda"
        dtype = getattr(torch, args.dtype or ("float16" if on_gpu else "float32"))
        report: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "device": args.device}
        if args.resources:
            report |= {"kernels": resource_report(dtype), "launches_a_step": launches()}
            print(table(report["kernels"]))
            print(
                "launches a step: " + ", ".join(f"{name} {count}" for name, count in report["launches_a_step"].items())
            )
        else:
            report["timings"] = timings(dtype, args.device, args.rounds)
            print(table([{"kernel": name, **row} for name, row in report["timings"].items()]))
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
