"""The flags of an export, as `mrc-export` and `optimum-cli export mrc` have them. Imports nothing heavy."""

import argparse
from pathlib import Path

from ..core.adapters import add_adapter_flags

OPSET = 23  # the first that keeps GroupNormalization and Attention whole in half precision
OPSETS = range(18, 25)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that both commands share."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT, and DIR below, whatever they hold (default: no)"
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=OPSET,
        metavar=f"{OPSETS[0]}…{OPSETS[-1]}",
        help="opset of the graphs; older runtimes need a lower one. Below 23 attention is many nodes, below 21 group "
        f"normalization too (default: {OPSET})",
    )
    parser.add_argument(
        "--int8",
        type=Path,
        metavar="IMAGES",
        help="also write int8 step graphs, calibrated on edits of the images in this folder (default: none)",
    )
    parser.add_argument(
        "--precision-report",
        action="store_true",
        help="also write precision.json and precision.html: what float16, bfloat16, int8 and fp8 cost in every graph, "
        "on edits of the images of --int8 or else of the package's photograph; slow (default: no)",
    )
    parser.add_argument("--trt", action="store_true", help="also build a TensorRT engine for every graph (default: no)")
    parser.add_argument(
        "--trt-target",
        type=lambda text: text.split(","),
        metavar="SM,…",
        help="GPUs to build for, such as sm86,sm89 (default: all but sm75; with data-centre TensorRT this machine's)",
    )
    for name, which, share in (("min", "least", "half "), ("opt", "best", ""), ("max", "most", "1.5 times ")):
        help_text = f"{which} pixels of a side, for --trt (default: {share}the model's resolution)"
        parser.add_argument(f"--{name}-size", type=int, help=help_text)
    parser.add_argument("--max-batch", type=int, default=1, help="most images of a pass, for --trt (default: 1)")
    parser.add_argument(
        "--triton-repository",
        type=Path,
        metavar="DIR",
        help="also write a model repository for NVIDIA Triton here (default: none)",
    )
    add_adapter_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the manifest instead of the table (default: no)")
