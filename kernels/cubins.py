"""The Triton kernels compiled ahead of time, which needs no GPU, and what the compiler made of them.

SM 80 is A100, 86 A10 and RTX 30, 89 L4 and RTX 40, 90 H100, 120 RTX 50.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from ..core.errors import MRCError
from .group_norm_silu import triton_kernel as group_norm
from .guided_step import triton_kernel as guided
from .reward_block import triton_kernel as reward

ARCHITECTURES = (80, 86, 89, 90, 120)
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
MAPS = {"positions": "i32", "stride_position": "i32", "eps": "fp32"}
NORM = {"channels": "i32", "groups": "i32"}
# read one value at a time, so that rows of a table do
SCALARS = ("guidance", "coefficients", "data_coefficients", "input_scale", "item")
MULTIPLES = ("stride_position", "channels", "size")


@dataclass(frozen=True)
class Specialization:
    """One kernel at fixed types and compile-time sizes."""

    name: str
    kernel: Any  # triton.JITFunction
    types: dict[str, str]  # of every argument that is not compile-time
    constants: dict[str, Any]
    options: dict[str, int]


def specializations(channels: int, groups: int, dtype: torch.dtype, architecture: int) -> list[Specialization]:
    """All kernels of a U-Net whose first width is `channels`; feature maps are channels last."""
    lanes = triton.next_power_of_2(channels // groups)
    return [
        reward_block(channels, dtype, architecture),
        reward_statistics(lanes, dtype),
        group_norm_silu(lanes, True, dtype),
        guided_step(True, dtype),
    ]


def reward_block(channels: int, dtype: torch.dtype, architecture: int) -> Specialization:
    half, whole = f"*{TYPES[dtype]}", "*fp32"
    weights = dict.fromkeys(reward.RewardWeights._fields[2:], half)
    sizes = reward.tiling(channels, dtype, architecture)
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    return Specialization(
        "reward_block",
        reward.reward_block_kernel,
        {"hidden": half, "output": half, "scratch": half, "scale": whole, "shift": whole, "gate": half,
         "gate_bias": whole, "base": whole, "update": half, **weights, **MAPS},
        {"CHANNELS": channels, "HEADS": reward.HEADS, "GATES": reward.GATES, "WIDEN": False, "stride_channel": 1,
         **sizes},
        options,
    )  # fmt: skip


def reward_statistics(lanes: int, dtype: torch.dtype) -> Specialization:
    """Groups of up to `lanes` channels, a power of two."""
    half, whole = f"*{TYPES[dtype]}", "*fp32"
    types = {"hidden": half, "weight": half, "bias": half, "scale": whole, "shift": whole, **NORM, **MAPS}
    return Specialization("reward_statistics", reward.statistics_kernel, types, blocks(lanes), {"num_warps": 8})


def group_norm_silu(lanes: int, offset: bool, dtype: torch.dtype) -> Specialization:
    """Groups of up to `lanes` channels, with or without the timestep's bias."""
    half = f"*{TYPES[dtype]}"
    types = {**dict.fromkeys(("hidden", "weight", "bias", "offset", "output"), half), **NORM, **MAPS}
    constants = {**blocks(lanes), "HAS_OFFSET": offset, "SILU": True}
    return Specialization("group_norm_silu", group_norm.group_norm_silu_kernel, types, constants, {"num_warps": 8})


def guided_step(fresh: bool, dtype: torch.dtype) -> Specialization:
    """With or without fresh noise."""
    half, whole = f"*{TYPES[dtype]}", "*fp32"
    names = ("guidance", "latents", "data", "fresh", "coefficients", "data_coefficients", "input_scale")
    types = {"noise": half, **dict.fromkeys(names, whole), "item": "*i64", "sample": half}
    types |= dict.fromkeys(("rows", "inputs", "size"), "i32")
    return Specialization(
        "guided_step", guided.guided_step_kernel, types, {"HAS_FRESH": fresh, "BLOCK": guided.BLOCK}, {}
    )


def blocks(lanes: int) -> dict[str, int]:
    return {"POSITIONS": group_norm.BLOCK // lanes, "WIDTH": lanes, "stride_channel": 1}


def compile_kernel(of: Specialization, architecture: int) -> CompiledKernel:
    """Compile for an SM version, without the paths of this machine.

    MULTIPLES, and pointers but for SCALARS, are taken to be multiples of 16.

    Raises:
        MRCError: Triton runs interpreted, and so has no compiler.
    """
    if triton.knobs.runtime.interpret:
        raise MRCError("TRITON_INTERPRET is set, so Triton compiles nothing; unset it")
    names = of.kernel.arg_names
    signature = {name: of.types.get(name, "constexpr") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if (signature[name].startswith("*") and name not in SCALARS) or name in MULTIPLES
    }
    source = ASTSource(of.kernel, signature, of.constants, aligned)
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        options = {**of.options, "enable_fp_fusion": True}  # the default of Triton 3.9
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(compiled: CompiledKernel) -> dict[str, int]:
    """Registers a thread, bytes of local memory a thread (spills), shared memory, and counts of instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = tool("cuobjdump", "-res-usage", file.name)
        listing = tool("cuobjdump", "-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if not found:
        raise MRCError(f"cuobjdump names no registers: {usage[:200]}")
    return {
        "registers": int(found[1]),
        "spilled": int(found[2]) + len(re.findall(r"\b(?:STL|LDL)\b", listing)),
        "shared": compiled.metadata.shared,
        "wgmma": len(re.findall(r"\bHGMMA\b", listing)),
        "mma": len(re.findall(r"\bHMMA\b", listing)),
    }


def tool(name: str, *arguments: str) -> str:
    """Output of one of the CUDA programs that come with Triton."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MRCError(f"{name} failed: {done.stderr.strip()[:300]}")
    return done.stdout
