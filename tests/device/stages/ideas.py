"""What other ways would give: attention backends, cuDNN's search, upsampling, merged products, the VAE."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mrc_edit.bench.replays import replay_seconds
from mrc_edit.model.layers import Upsampler

from .models import edit, torch_engine
from .report import Report
from .timing import event_time, kernel_times

DTYPE = torch.bfloat16
ATTENTIONS = (  # batch, heads, queries, keys, width of a head
    (3, 8, 4096, 4096, 40),
    (3, 8, 1024, 1024, 80),
    (3, 8, 256, 256, 160),
    (3, 8, 4096, 77, 40),
    (1, 1, 4096, 4096, 512),
)


def ideas(report: Report, _: float) -> None:
    with torch.inference_mode():
        for shape in ATTENTIONS:
            report.attempt(f"attention {shape}", time_attention, *shape)
        for channels, side in ((1280, 8), (1280, 16), (640, 32)):
            report.attempt(f"upsampling {channels} {side}", time_upsampling, channels, side)
        report.attempt("products at the first level", time_products)
    report.attempt("cudnn.benchmark and the VAE", time_search)


def time_attention(batch: int, heads: int, queries: int, keys: int, width: int) -> dict:
    def normal(length: int) -> torch.Tensor:
        return torch.randn(batch, length, heads, width, device="cuda", dtype=DTYPE).transpose(1, 2)

    query, key, value = normal(queries), normal(keys), normal(keys)
    flop = 4 * batch * heads * queries * keys * width
    result: dict = {}
    for backend in (None, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        name = backend.name if backend else "default"
        try:
            with sdpa_kernel(backend) if backend else nullcontext():
                seconds = replay_seconds([lambda: F.scaled_dot_product_attention(query, key, value)], 10)
            result[name] = {"us": 1e6 * seconds, "TFLOP_s": flop / seconds / 1e12}
        except Exception as error:  # most backends refuse some shapes
            result[name] = f"{type(error).__name__}: {str(error)[:120]}"
    return result


def time_upsampling(channels: int, side: int) -> dict:
    class Block:
        conv = torch.nn.Conv2d(channels, channels, 3, padding=1).to("cuda", DTYPE)

    Block.conv.to(memory_format=torch.channels_last)
    upsampler = Upsampler(Block)
    x = torch.randn(3, channels, side, side, device="cuda", dtype=DTYPE).contiguous(memory_format=torch.channels_last)

    def ours() -> torch.Tensor:
        return upsampler(x).contiguous(memory_format=torch.channels_last)  # what the next convolution reads

    def plain() -> torch.Tensor:
        larger = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return Block.conv(larger).contiguous(memory_format=torch.channels_last)

    return {
        "ours_us": 1e6 * replay_seconds([ours], 10),
        "plain_us": 1e6 * replay_seconds([plain], 10),
        "ours is channels last": upsampler(x).is_contiguous(memory_format=torch.channels_last),
    }


def time_products() -> dict:
    """Query, key and value as three products or one; a GEGLU as two products or compiled."""
    x, w = torch.randn(12288, 320, device="cuda", dtype=DTYPE), torch.randn(960, 320, device="cuda", dtype=DTYPE)
    g = torch.randn(2560, 320, device="cuda", dtype=DTYPE)

    def geglu(x: torch.Tensor) -> torch.Tensor:
        value, gate = F.linear(x, g).chunk(2, -1)
        return value * F.gelu(gate)

    compiled = torch.compile(geglu)
    calls = {
        "qkv apart_us": lambda: [F.linear(x, part) for part in w.chunk(3)],
        "qkv together_us": lambda: F.linear(x, w).chunk(3, -1),
        "geglu two_us": lambda: F.linear(x, g[:1280]) * F.gelu(F.linear(x, g[1280:])),
        "geglu fused_us": lambda: compiled(x),
    }
    return {name: 1e6 * replay_seconds([call], 10) for name, call in calls.items()}


def time_search() -> dict:
    """A step and the VAE, recorded after cuDNN searched for its fastest algorithms."""
    torch.backends.cudnn.benchmark = True
    engine = torch_engine("bfloat16")
    edit(engine, 512, "np", 2)
    result: dict = {}
    for name in ("unet", "vae_decoder", "vae_encoder", "text_encoder", "conditioner"):
        replay = next(iter(engine.backend.calls[name].recordings.values.values())).replay
        result[f"{name} replay_ms with cuDNN's search"] = 1e3 * event_time(replay, 30)
        if name.startswith("vae"):
            result[name] = kernel_times(replay)
    return result
