"""Compile the kernels that libmrc_cuda.so embeds. CMake runs this; it needs no GPU.

    python -m mrc_edit.kernels.build_pack build/pack --types float16

writes `cubins.bin`, the cubins one after another, and `cubins.inc`, their table, which csrc/mrc_cuda.cpp includes.
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
from ..core.files import foreign_files, replace_folder
from . import cubins
from .cubins import ARCHITECTURES, Specialization, compile_kernel
from .feature_maps import FLOATS

WIDTHS = (32, 320)  # channels of the reward block: `mini` and the released U-Net
LANES = (16, 32, 64, 128)  # greatest number of channels in a group of a norm; the reward block's has the first
KERNELS = ("reward_block", "reward_statistics", "group_norm_silu", "sampler_step")  # `Kernel` of mrc_cuda.cpp
LETTERS = {"u64": "p", "u32": "i", "f32": "f"}  # of PTX parameters; every u64 of ours is a pointer
ALIGNMENT = 64  # bytes of a cubin in cubins.bin


def contents(dtype: torch.dtype, architecture: int) -> list[Specialization]:
    """All kernels of the pack for one dtype and SM version, the slowest to compile first."""
    return [
        *(cubins.reward_block(width, dtype, architecture) for width in reversed(WIDTHS)),
        cubins.reward_statistics(LANES[0], dtype),
        *(cubins.group_norm_silu(lanes, offset, dtype) for lanes in LANES for offset in (True, False)),
        *(cubins.sampler_step(fresh_noise, dtype) for fresh_noise in (True, False)),
    ]


def compile_job(job: tuple[int, torch.dtype, int]) -> tuple[bytes, str, str]:
    """Compile kernel `job[2]` of `contents`.

    Returns:
        The cubin, its row of the table up to its offset, and a letter for every parameter.

    Raises:
        MRCError: Triton compiled a kernel that the launcher cannot launch.
    """
    architecture, dtype, index = job
    specialization = contents(dtype, architecture)[index]
    kernel = compile_kernel(specialization, architecture)
    metadata, ptx = kernel.metadata, kernel.asm["ptx"]
    entry = ptx[ptx.index(".entry") :]
    types = re.findall(r"\.param \.(\w+)", entry[: entry.index("{")])
    target = re.search(r"^\.target (sm_\d+)(\w*)", ptx, re.MULTILINE)
    needs = (metadata.num_ctas != 1, metadata.global_scratch_size, metadata.profile_scratch_size)
    if any(needs) or not target or not LETTERS.keys() >= set(types):
        raise MRCError(
            f"Triton {triton.__version__} compiled {metadata.name} for {target and target[0]} with parameters {types}, "
            f"{metadata.num_ctas} CTAs and {needs[1:]} bytes of scratch memory; build the pack with Triton 3.9"
        )
    constants = specialization.constants
    width = constants.get("CHANNELS", constants.get("WIDTH", 0))
    optional = constants.get("HAS_OFFSET", constants.get("HAS_FRESH", False))
    block = constants.get("TILE", constants.get("BLOCK", 0))
    row = (
        f"{specialization.name.upper()}, MRC_{FLOATS[dtype].name.upper()}, {architecture}, {int(bool(target[2]))}, "
        f'{width}, {int(optional)}, "{metadata.name}", {block}, {32 * metadata.num_warps}, {metadata.shared}'
    )
    return kernel.asm["cubin"], row, "".join(LETTERS[name] for name in types)


def build(folder: Path, architectures: Iterable[int], dtypes: Iterable[torch.dtype]) -> None:
    """Write both files into `folder`, which is replaced.

    Raises:
        MRCError: as `compile_job`, or a `folder` with other files.
    """
    jobs = [(sm, dtype, i) for sm in architectures for dtype in dtypes for i in range(len(contents(dtype, sm)))]
    slow_first = sorted(jobs, key=lambda job: job[2])
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        results = tqdm(pool.map(compile_job, slow_first), desc="cubins", total=len(jobs), disable=None)
        compiled = dict(zip(slow_first, results, strict=True))
    parameters: dict[str, set[str]] = {name: set() for name in KERNELS}
    blob, rows = bytearray(), []
    for job in jobs:
        architecture, dtype, index = job
        cubin, row, letters = compiled[job]
        rows.append(f"    {{{row}, {len(blob)}}},\n")
        blob += cubin + bytes(-len(cubin) % ALIGNMENT)
        parameters[contents(dtype, architecture)[index].name].add(letters)
    if any(len(letters) != 1 for letters in parameters.values()):
        raise MRCError(f"a kernel's parameters differ between dtypes: {parameters}; build the pack with Triton 3.9")
    listed = ", ".join(f'"{letters}"' for name in KERNELS for letters in parameters[name])
    with replace_folder(folder, check_pack) as partial:
        (partial / "cubins.bin").write_bytes(blob)
        (partial / "cubins.inc").write_text(
            f"// Written by kernels/build_pack.py with Triton {triton.__version__}\n"
            f"constexpr const char* parameters[] = {{{listed}}};\n"
            f"constexpr Cubin cubins[] = {{\n{''.join(rows)}}};\n"
        )


def check_pack(folder: Path) -> None:
    """Refuse to replace a folder with files of something else."""
    if foreign := foreign_files(folder, ("cubins.bin", "cubins.inc")):
        raise MRCError(f"{folder} holds {foreign[0]}, which is not of a pack; give another folder")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mrc_edit.kernels.build_pack", description=(__doc__ or "").splitlines()[0]
    )
    dtypes = {kind.name: dtype for dtype, kind in FLOATS.items()}
    parser.add_argument("folder", type=Path, help="where to write cubins.bin and cubins.inc; it is replaced")
    parser.add_argument(
        "--architectures", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES,
        help="SM versions (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--types",
        nargs="+",
        default=list(dtypes),
        choices=dtypes,
        help="number formats of the feature maps (default: %(default)s)",
    )
    args = parser.parse_args()
    sys.exit(run_command(lambda: build(args.folder, args.architectures, [dtypes[name] for name in args.types])))


if __name__ == "__main__":
    main()
