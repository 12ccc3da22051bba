"""Each kernel at the shapes of a step, on inputs that do not lie in the L2 cache, against bytes and operations."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mrc_edit.bench.launches import BRANCHES, SD15
from mrc_edit.bench.operators import CHANNELS, RewardModules
from mrc_edit.bench.replays import replay_seconds
from mrc_edit.kernels import ops
from mrc_edit.model.layers import cross_attentions, resnets
from mrc_edit.model.step import UNetStep
from mrc_edit.model.unet import MRCUNet

from .report import Report

BANDWIDTH, RATE = 3.0e12, 790e12  # bytes and bfloat16 operations a second of an H100, for the rooflines
COLUMNS = "shape, a step, ours cold us, ours warm us, eager us, bytes/3.0 TB/s us"


def kernels(report: Report, _: float) -> None:
    report.attempt("group_norm_silu", time_norms)
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            report.attempt(f"reward_block {dtype}", time_reward_blocks, dtype)
    report.attempt("sampler_step_us", time_sampler_step)


class NormShapes(TorchDispatchMode):
    """Counts the calls of group_norm_silu by shape and whether they have an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[tuple, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "mrc::group_norm_silu":
            key = (*args[0].shape, args[5] is not None)
            self.counts[key] = self.counts.get(key, 0) + 1
        return func(*args, **(kwargs or {}))


def norm_shapes() -> dict[tuple, int]:
    """Shapes of one step of the released U-Net with three branches."""
    with torch.device("meta"), torch.no_grad():
        unet = MRCUNet(**SD15).eval()
        folded = [torch.empty(2, *rest) for rest in ((8, CHANNELS), (8, 1), (CHANNELS, 1), (CHANNELS, 8))]
        time_bias = torch.empty(2, sum(resnet.out_channels for resnet in resnets(unet)))
        text_kv = torch.empty(BRANCHES, 77, sum(2 * attention.inner_dim for attention in cross_attentions(unet)))
        branch, guidance = torch.empty(BRANCHES, dtype=torch.int64), torch.empty(1, BRANCHES)
        with NormShapes() as shapes:
            UNetStep(unet, True)(torch.empty(2, 8, 64, 64), branch, guidance, time_bias, text_kv, *folded)
    return shapes.counts


def feature_maps(number: int, *shape: int, dtype: torch.dtype) -> list[Tensor]:
    maps = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(number))
    return [one.contiguous(memory_format=torch.channels_last) for one in maps]


def time_norms(dtype: torch.dtype = torch.bfloat16) -> dict:
    rows, total, least_total = [], 0.0, 0.0
    for (n, c, h, w, has_offset), count in sorted(norm_shapes().items()):
        maps = feature_maps(max(2, min(24, int(150e6 // (4 * n * c * h * w)) + 1)), n, c, h, w, dtype=dtype)
        weight, bias = torch.randn(2, c, device="cuda", dtype=dtype)
        offset = torch.randn(n, c, device="cuda", dtype=dtype) if has_offset else None

        def ours(x: Tensor, weight=weight, bias=bias, offset=offset) -> Tensor:
            return ops.group_norm_silu(x, weight, bias, 32, 1e-5, offset, True)

        def eager(x: Tensor, weight=weight, bias=bias, offset=offset) -> Tensor:
            x = x if offset is None else x + offset[..., None, None]
            return F.silu(F.group_norm(x, 32, weight, bias, 1e-5))

        cold = replay_seconds([partial(ours, x) for x in maps])
        warm = replay_seconds([partial(ours, maps[0])], 20)
        plain = replay_seconds([partial(eager, x) for x in maps])
        least = 4 * n * c * h * w / BANDWIDTH
        microseconds = (round(1e6 * seconds, 2) for seconds in (cold, warm, plain, least))
        rows.append([f"{n}×{c}×{h}×{w}{'+' if has_offset else ''}", count, *microseconds])
        total, least_total = total + count * cold, least_total + count * least
    return {"columns": COLUMNS, "rows": rows, "a step ms": 1e3 * total, "roofline ms": 1e3 * least_total}


def time_reward_blocks(dtype: torch.dtype) -> dict:
    torch.manual_seed(0)
    layers = RewardModules()
    layers.build_rewards(CHANNELS, 768, 32, ())
    layers = layers.eval().to("cuda", dtype)
    result = {}
    for side in (64, 32):
        maps = feature_maps(16, 2, CHANNELS, side, side, dtype=dtype)
        tokens = torch.randn(2, 2, CHANNELS, device="cuda", dtype=dtype)
        folded, weights = layers.folded_attention(tokens), list(layers.reward_weights())
        seconds = replay_seconds([lambda x=x, f=folded, w=weights: ops.reward_block(x, *f, w, 32) for x in maps])
        eager = replay_seconds([lambda x=x, t=tokens: layers.reward_layer(x, t) for x in maps])
        flop = 2 * 2 * side * side * (4 * CHANNELS**2 + 16 * CHANNELS)
        result[side] = {
            "ours_us": 1e6 * seconds,
            "eager_us": 1e6 * eager,
            "flop_us": 1e6 * flop / RATE,
            "TFLOP_s": flop / seconds / 1e12,
        }
    return result


def time_sampler_step() -> float:
    """Microseconds of a step of one image on two inputs, at 64×64."""
    noise, latents, data, fresh = (torch.randn(1, 4, 64, 64, device="cuda") for _ in range(4))
    sample, item = torch.randn(2, 8, 64, 64, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
    table = torch.rand(7, device="cuda")
    arguments = (noise, latents, data, fresh, table[1:5], table[5:], table[:1], item, sample)
    return 1e6 * replay_seconds([lambda: ops.sampler_step(*arguments)], 50)
