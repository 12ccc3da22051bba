"""Compile what libmrc_cuda.so embeds; CMake runs it, no GPU is needed.

    python -m mrc_edit.kernels.build_pack build/pack --types float16

writes `cubins.bin`, the cubins one after another, and `cubins.inc`, the table of them that
csrc/mrc_cuda.cpp includes.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import triton
from tqdm import tqdm

from ..core.errors import MRCError, run_command
from ..core.files import replace_folder
from . import cubins
from .cubins import ARCHITECTURES, Specialization, compile_kernel

WIDTHS = (32, 320)  # channels of the reward block: `mini` and the released U-Net
LANES = (16, 32, 64, 128)  # channels a group of a norm has at most; the reward block's has the least
KERNELS = ("reward_block", "reward_statistics", "group_norm_silu", "guided_step")  # `Kernel` of mrc_cuda.cpp
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LETTERS = {"u64": "p", "u32": "i", "f32": "f"}  # of PTX parameters; every u64 of ours is a pointer
ALIGNMENT = 64  # bytes of a cubin in cubins.bin


def packed(dtype: torch.dtype, architecture: int) -> list[Specialization]:
    """All kernels of the pack for one type and SM version, the slowest to compile first."""
    return [
        *(cubins.reward_block(width, dtype, architecture) for width in reversed(WIDTHS)),
        cubins.reward_statistics(LANES[0], dtype),
        *(cubins.group_norm_silu(lanes, offset, dtype) for lanes in LANES for offset in (True, False)),
        *(cubins.guided_step(fresh, dtype) for fresh in (True, False)),
    ]


def compiled(job: tuple[int, str, int]) -> tuple[bytes, str, str]:
    """Cubin, row of the table up to the cubin's place, and parameters by their letters, of kernel `job[2]`.

    Raises:
        MRCError: Triton made a kernel that the launcher cannot launch.
    """
    architecture, name, index = job
    of = packed(TYPES[name], architecture)[index]
    kernel = compile_kernel(of, architecture)
    metadata, ptx = kernel.metadata, kernel.asm["ptx"]
    entry = ptx[ptx.index(".entry") :]
    types = re.findall(r"\.param \.(\w+)", entry[: entry.index("{")])
    target = re.search(r"^\.target (sm_\d+)(\w*)", ptx, re.MULTILINE)
    needs = (metadata.num_ctas != 1, metadata.global_scratch_size, metadata.profile_scratch_size)
    if any(needs) or not target or not LETTERS.keys() >= set(types):
        raise MRCError(
            f"Triton {triton.__version__} made {metadata.name} for {target and target[0]} with parameters {types}, "
            f"{metadata.num_ctas} CTAs and {needs[1:]} bytes of scratch memory; the pack is made with Triton 3.9"
        )
    constants = of.constants
    width = constants.get("CHANNELS", constants.get("WIDTH", 0))
    optional = constants.get("HAS_OFFSET", constants.get("HAS_FRESH", False))
    block = constants.get("TILE", constants.get("BLOCK", 0))
    row = (
        f"{of.name.upper()}, MRC_{name.upper()}, {architecture}, {int(bool(target[2]))}, {width}, {int(optional)}, "
        f'"{metadata.name}", {block}, {32 * metadata.num_warps}, {metadata.shared}'
    )
    return kernel.asm["cubin"], row, "".join(LETTERS[name] for name in types)


def build(folder: Path, architectures: Iterable[int], types: Iterable[str]) -> None:
    """Write both files into `folder`, which is replaced.

    Raises:
        MRCError: as `compiled`.
    """
    jobs = [(sm, name, i) for sm in architectures for name in types for i in range(len(packed(TYPES[name], sm)))]
    slow_first = sorted(jobs, key=lambda job: job[2])
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        made = pool.map(compiled, slow_first)
        found = dict(zip(slow_first, tqdm(made, desc="cubins", total=len(jobs), disable=None), strict=True))
    parameters: dict[str, set[str]] = {name: set() for name in KERNELS}
    blob, rows = bytearray(), []
    for job in jobs:
        cubin, row, letters = found[job]
        rows.append(f"    {{{row}, {len(blob)}}},\n")
        blob += cubin + bytes(-len(cubin) % ALIGNMENT)
        parameters[packed(TYPES[job[1]], job[0])[job[2]].name].add(letters)
    if any(len(letters) != 1 for letters in parameters.values()):
        raise MRCError(f"the same kernel has other parameters at other types: {parameters}")
    listed = ", ".join(f'"{letters}"' for name in KERNELS for letters in parameters[name])
    with replace_folder(folder) as partial:
        (partial / "cubins.bin").write_bytes(blob)
        (partial / "cubins.inc").write_text(
            f"// Written by kernels/build_pack.py with Triton {triton.__version__}\n"
            f"constexpr const char* parameters[] = {{{listed}}};\n"
            f"constexpr Cubin cubins[] = {{\n{''.join(rows)}}};\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mrc_edit.kernels.build_pack", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    args = parser.parse_args()
    sys.exit(run_command(lambda: build(args.folder, args.architectures, args.types)))


if __name__ == "__main__":
    main()
