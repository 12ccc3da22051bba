"""The kernels against eager PyTorch, each timed only if it agrees with its float64 reference.

python bench/operators.py                  CPU: interleaved timings
python bench/operators.py --device cuda    the same on a GPU, by replays over inputs in turn
python bench/operators.py --resources      registers and instructions of the Triton kernels; needs no GPU
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mrc_edit.bench.launches import BRANCHES, launches
from mrc_edit.bench.machine import describe_machine
from mrc_edit.bench.options import command_parser, require_at_least
from mrc_edit.bench.replays import event_seconds, recorded
from mrc_edit.bench.report import Row, add_output_options, plain_table, write_report
from mrc_edit.bench.runner import ratios, run_in_turn, seconds_of
from mrc_edit.core.errors import MRCError, run_command
from mrc_edit.core.fidelity import relative_error
from mrc_edit.core.schema import JsonObject
from mrc_edit.kernels import ops
from mrc_edit.kernels.group_norm_silu.reference import group_norm_silu
from mrc_edit.kernels.reward_block.reference import reward_block
from mrc_edit.kernels.sampler_step.reference import sampler_step
from mrc_edit.model.rewards import RewardConditioning

CHANNELS, GROUPS = 320, 32  # of the released U-Net's first level
INPUT_SETS = 16  # on a GPU in turn, so that its cache does not hold them
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LEVELS = ((320, 64), (640, 32), (1280, 16), (1280, 8))  # channels and side of the released U-Net's levels


@dataclass(frozen=True)
class Case:
    """`eager` and `ours` do the same; `error` is how far ours is from the float64 reference."""

    name: str
    eager: Callable[[], object]
    ours: Callable[[], object]
    error: float
    tolerance: float


def tensor_error(actual: Tensor, expected: Tensor) -> float:
    """Relative error of a tensor of any dtype and device to a float64 one."""
    return relative_error(*(tensor.detach().double().cpu().numpy() for tensor in (actual, expected)))


def wide(values: list) -> list:
    return [[w.double() for w in v] if isinstance(v, list) else v.double() if isinstance(v, Tensor) else v
            for v in values]  # fmt: skip


class RewardModules(RewardConditioning, nn.Module):
    """The released reward modules alone."""


def reward_case(side: int, dtype: torch.dtype, device: str) -> Case:
    layers = RewardModules()
    layers.build_rewards(CHANNELS, 768, GROUPS, ())
    layers = layers.eval().to(device, dtype)
    hidden = torch.randn(BRANCHES, CHANNELS, side, side, device=device, dtype=dtype)
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    tokens = torch.randn(BRANCHES, 2, CHANNELS, device=device, dtype=dtype)
    arguments = [hidden, *layers.folded_attention(tokens), list(layers.reward_weights()), GROUPS]
    error = tensor_error(ops.reward_block(*arguments), reward_block(*wide(arguments)))
    return Case(
        f"reward_block {side}×{side}",
        lambda: layers.reward_layer(hidden, tokens),
        lambda: ops.reward_block(*arguments),
        error,
        TOLERANCE[dtype],
    )


def group_norm_case(channels: int, side: int, dtype: torch.dtype, device: str) -> Case:
    hidden = torch.randn(BRANCHES, channels, side, side, device=device, dtype=dtype)
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels, device=device, dtype=dtype)
    offset = torch.randn(BRANCHES, channels, device=device, dtype=dtype)
    arguments = [hidden, weight, bias, GROUPS, 1e-5, offset, True]
    return Case(
        f"group_norm_silu {channels}×{side}×{side}",
        lambda: F.silu(F.group_norm(hidden + offset[..., None, None], GROUPS, weight, bias, 1e-5)),
        lambda: ops.group_norm_silu(*arguments),
        tensor_error(ops.group_norm_silu(*arguments), group_norm_silu(*wide(arguments))),
        TOLERANCE[dtype],
    )


def step_case(side: int, device: str) -> Case:
    """One image, two inputs, an ancestral step."""
    noise, latents, denoised, fresh_noise = torch.randn(4, 1, 4, side, side)
    coefficients, to_denoised = torch.tensor([0.9, -0.2, 0.1, 0.05]), torch.tensor([1.0, -0.7])
    item, sample = torch.zeros(2, dtype=torch.int64), torch.randn(2, 8, side, side)
    first = (noise, latents, denoised, fresh_noise, coefficients, to_denoised, torch.tensor([0.3]), item, sample)
    truth = [tensor.double() if tensor.is_floating_point() else tensor for tensor in first]
    sampler_step(*truth)
    arguments = [tensor.to(device, copy=True) for tensor in first]
    ops.sampler_step(*arguments)
    error = max(tensor_error(arguments[i].cpu(), truth[i]) for i in (1, 2, 8))
    return Case(
        f"sampler_step {side}×{side}",
        lambda: sampler_step(*arguments),
        lambda: ops.sampler_step(*arguments),
        error,
        1e-5,
    )


def cases(dtype: torch.dtype, device: str, seed: int = 0) -> list[Case]:
    """All cases, on random inputs.

    Raises:
        MRCError: a kernel is wrong; a wrong kernel is not timed.
    """
    torch.manual_seed(seed)
    every = [reward_case(side, dtype, device) for side in (64, 32)]
    if device == "cuda":  # on the CPU the operator is its reference
        every += [step_case(side, device) for side in (64, 32)]
    every += [group_norm_case(*level, dtype, device) for level in LEVELS]
    for case in every:
        if not case.error <= case.tolerance:
            raise MRCError(
                f"{case.name} is {case.error:.1e} from its reference, more than {case.tolerance:.0e}; "
                "run pytest tests/kernels before timing it"
            )
    return every


def event_seconds_each(replay: Callable[[], object]) -> float:
    """Seconds of one call of a replay over all input sets."""
    return event_seconds(replay) / INPUT_SETS


@torch.inference_mode()
def timings(dtype: torch.dtype, device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of both, and the ratio eager/ours round by round."""
    on_card = device == "cuda"
    sets = [cases(dtype, device, seed) for seed in range(INPUT_SETS if on_card else 1)]
    every, runs = sets[0], {}
    for same in zip(*sets, strict=True):
        for side in ("eager", "ours"):
            calls = [getattr(case, side) for case in same]
            replay = recorded(calls) if on_card else calls[0]
            runs[same[0].name, side] = partial(event_seconds_each if on_card else seconds_of, replay)
    seconds = run_in_turn(runs, rounds, warmup=3)
    report = {}
    for case in every:
        eager, ours = (seconds[case.name, side] for side in ("eager", "ours"))
        ratio = ratios(eager, ours)
        report[case.name] = {
            "eager_s": median(eager),
            "ours_s": median(ours),
            "speedup": ratio["median"],
            "least": ratio["least"],
            "greatest": ratio["greatest"],
            "error": case.error,
        }
    return report


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
        "sampler_step": {"flop": 11 * latents, "bytes": latents * (3 * width + 5 * 4)},
    }


def resource_report(dtype: torch.dtype) -> list[Row]:
    from mrc_edit.kernels.cubins import ARCHITECTURES, compile_kernel, resources, specializations

    jobs = [(sm, kernel) for sm in ARCHITECTURES for kernel in specializations(CHANNELS, GROUPS, dtype, sm)]
    least = roofline(dtype)
    return [
        {"kernel": kernel.name, "sm": sm, **resources(compile_kernel(kernel, sm)), **least[kernel.name]}
        for sm, kernel in tqdm(jobs, desc="compile", disable=None)
    ]


def arguments() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to time (default cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="number format of the feature maps (default float32, on CUDA float16)",
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each operator (default 15)")
    parser.add_argument(
        "--resources",
        action="store_true",
        help="print registers, spills and instructions instead, and the launches of a step (default no)",
    )
    add_output_options(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    require_at_least(args, rounds=1)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise MRCError("--device is cuda and PyTorch sees no GPU; give cpu, or --resources, which needs none")
    on_gpu = args.resources or args.device == "cuda"
    dtype = getattr(torch, args.dtype or ("float16" if on_gpu else "float32"))
    report: JsonObject = {"dtype": str(dtype).removeprefix("torch."), "device": args.device}
    report["machine"] = describe_machine()
    rows: Sequence[Row]
    if args.resources:
        report |= {"kernels": (rows := resource_report(dtype)), "launches_a_step": (counts := launches())}
        print(plain_table(rows).markdown())
        print("launches a step: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    else:
        report["timings"] = timings(dtype, args.device, args.rounds)
        rows = [{"kernel": name, **row} for name, row in report["timings"].items()]
        print(plain_table(rows).markdown())
    write_report(args, report, rows)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    sys.exit(run_command(lambda: run(parsed)))
