"""Compile the Triton kernels without a GPU, and read from the binaries what resources they use.

SM 80 is A100, 86 A10 and RTX 30, 89 L4 and RTX 40, 90 H100, 120 RTX 50.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from ..core.errors import MRCError
from .feature_maps import FLOATS
from .group_norm_silu import triton_kernel as group_norm
from .reward_block import triton_kernel as reward
from .sampler_step import triton_kernel as sampler

ARCHITECTURES = (80, 86, 89, 90, 120)
MAPS = {"positions": "i32", "stride_position": "i32", "eps": "fp32"}
NORM = {"channels": "i32", "groups": "i32"}
# loaded as scalars: no 16-byte alignment needed, so they may be rows of a table
SCALARS = ("coefficients", "denoised_coefficients", "input_scale", "item")
MULTIPLES = ("stride_position", "channels", "size")  # of 16


@dataclass(frozen=True)
class Specialization:
    """One kernel at fixed types and compile-time sizes."""

    name: str
    kernel: triton.JITFunction
    types: dict[str, str]  # Triton's, of every argument that is not compile-time
    constants: dict[str, int]
    options: dict[str, int]


def specializations(channels: int, groups: int, dtype: torch.dtype, architecture: int) -> list[Specialization]:
    """All kernels of a U-Net whose first width is `channels`; feature maps are channels last."""
    lanes = triton.next_power_of_2(channels // groups)
    return [
        reward_block(channels, dtype, architecture),
        reward_statistics(lanes, dtype),
        group_norm_silu(lanes, True, dtype),
        sampler_step(True, dtype),
    ]


def reward_block(channels: int, dtype: torch.dtype, architecture: int) -> Specialization:
    pointer, float32 = f"*{FLOATS[dtype].triton}", "*fp32"
    weights = dict.fromkeys(reward.RewardWeights._fields[2:], pointer)
    sizes = reward.tiling(channels, dtype, architecture)
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    return Specialization(
        "reward_block",
        reward.reward_block_kernel,
        {"hidden": pointer, "output": pointer, "scratch": pointer, "scale": float32, "shift": float32, "gate": pointer,
         "gate_bias": float32, "base": float32, "update": pointer, **weights, **MAPS},
        {"CHANNELS": channels, "HEADS": reward.HEADS, "GATES": reward.GATES, "WIDEN": False, "stride_channel": 1,
         **sizes},
        options,
    )  # fmt: skip


def reward_statistics(lanes: int, dtype: torch.dtype) -> Specialization:
    """Groups of up to `lanes` channels, a power of two."""
    pointer, float32 = f"*{FLOATS[dtype].triton}", "*fp32"
    types = {"hidden": pointer, "weight": pointer, "bias": pointer, "scale": float32, "shift": float32, **NORM, **MAPS}
    return Specialization("reward_statistics", reward.statistics_kernel, types, blocks(lanes), {"num_warps": 8})


def group_norm_silu(lanes: int, offset: bool, dtype: torch.dtype) -> Specialization:
    """Groups of up to `lanes` channels, with or without the timestep's bias."""
    pointer = f"*{FLOATS[dtype].triton}"
    types = {**dict.fromkeys(("hidden", "weight", "bias", "offset", "output"), pointer), **NORM, **MAPS}
    constants = {**blocks(lanes), "HAS_OFFSET": offset, "SILU": True}
    return Specialization("group_norm_silu", group_norm.group_norm_silu_kernel, types, constants, {"num_warps": 8})


def sampler_step(fresh_noise: bool, dtype: torch.dtype) -> Specialization:
    """With or without fresh noise."""
    pointer, float32 = f"*{FLOATS[dtype].triton}", "*fp32"
    names = ("latents", "denoised", "fresh_noise", "coefficients", "denoised_coefficients", "input_scale")
    types = {"noise": pointer, **dict.fromkeys(names, float32), "item": "*i64", "sample": pointer}
    types |= dict.fromkeys(("inputs", "size"), "i32")
    constants = {"HAS_FRESH": fresh_noise, "BLOCK": sampler.BLOCK}
    return Specialization("sampler_step", sampler.sampler_step_kernel, types, constants, {})


def blocks(lanes: int) -> dict[str, int]:
    """Compile-time sizes of a group norm over channels-last maps."""
    return {"POSITIONS": group_norm.BLOCK // lanes, "WIDTH": lanes, "stride_channel": 1}


def compile_kernel(specialization: Specialization, architecture: int) -> CompiledKernel:
    """Compile for an SM version, without the paths of this machine.

    The compiled kernel relies on MULTIPLES and all pointers but SCALARS being multiples of 16.

    Raises:
        MRCError: Triton runs its interpreter, which compiles nothing.
    """
    if triton.knobs.runtime.interpret:
        raise MRCError("TRITON_INTERPRET is set, so Triton compiles nothing; unset it")
    names = specialization.kernel.arg_names
    signature = {name: specialization.types.get(name, "constexpr") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if (signature[name].startswith("*") and name not in SCALARS) or name in MULTIPLES
    }
    source = ASTSource(specialization.kernel, signature, specialization.constants, aligned)
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        options = {**specialization.options, "enable_fp_fusion": True}  # Triton 3.9's default
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(compiled: CompiledKernel) -> dict[str, int]:
    """Registers and spills (bytes of local memory) a thread, bytes of shared memory, counts of matrix instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = tool("cuobjdump", "-res-usage", file.name)
        listing = tool("cuobjdump", "-sass", file.name)
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if not match:
        raise MRCError(f"cuobjdump names no registers: {usage[:200]}")
    return {
        "registers": int(match[1]),
        "spilled": int(match[2]) + len(re.findall(r"\b(?:STL|LDL)\b", listing)),
        "shared": compiled.metadata.shared,
        "wgmma": len(re.findall(r"\bHGMMA\b", listing)),
        "mma": len(re.findall(r"\bHMMA\b", listing)),
    }


def tool(name: str, *arguments: str) -> str:
    """Output of one of the CUDA programs that come with Triton."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    process = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    if process.returncode:
        raise MRCError(f"{name} failed: {process.stderr.strip()[:300]}")
    return process.stdout
