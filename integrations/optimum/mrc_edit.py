"""`optimum-cli export mrc --model CHECKPOINT OUT`: `mrc-export` under optimum's flag names.

Installed as `optimum/commands/register/mrc_edit.py`, where optimum-cli looks for commands at every start: so nothing
heavy is imported before `run`.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Flags of `optimum-cli export onnx` with the values that say what this export does anyway, and why others are refused
FIXED = {
    "--task": (("auto", "image-to-image"), "the export is for editing images"),
    "--device": (("cpu",), "it runs on the CPU"),
    "--framework": (("pt",), "it starts from PyTorch"),
    "--library-name": (("diffusers",), "it reads checkpoints in the diffusers layout"),
    "--variant": (("default",), "it takes the one variant of weights that the folder holds"),
    "--optimize": ((), "its graphs are for every runtime, which optimizes them itself"),
    "--atol": ((), "graphs are validated by their relative error, with one tolerance a precision"),
    "--cache_dir": ((), "it downloads nothing"),
    "--pad_token_id": ((), "it takes the token from the tokenizer"),
    "--model-kwargs": ((), "the model takes none"),
    **dict.fromkeys(
        ("--batch_size", "--sequence_length", "--num_choices", "--width", "--height", "--num_channels",
         "--feature_size", "--nb_max_frames", "--audio_sequence_length", "--point_batch_size",
         "--nb_points_per_image", "--visual_seq_length"),
        ((), "batch, height and width are open in its graphs, and all else is fixed by the model"),
    ),
}  # fmt: skip
REFUSED = {
    "--monolith": "the graphs run at different times: once an edit and once a step",
    "--no-post-process": "nothing is done to the graphs afterwards",
    "--trust-remote-code": "code from a model's folder never runs",
    "--no-dynamic-axes": "the engine needs open sizes; fix them with --min-size, --opt-size and --max-size of --trt",
    "--no-constant-folding": "the runtimes expect folded weights",
    "--slim": "its graphs are folded already",
}


class MRCExportCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(
        name="mrc", help="Export an MRC or InstructPix2Pix checkpoint to ONNX and TensorRT (mrc-edit)"
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        from mrc_edit.core.layout import LAYOUT
        from mrc_edit.export.options import add_options

        parser.add_argument(
            "-m", "--model", required=True, help="checkpoint: folder, or OWNER/NAME on the Hugging Face hub"
        )
        parser.add_argument("output", type=Path, help="export folder to write; an older export there is replaced")
        parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="precision inside the graphs")
        add_options(parser)
        for name, text in LAYOUT.items():
            if f"--{name}" not in FIXED:
                parser.add_argument(f"--{name}", help=text)
        for flag, (values, reason) in FIXED.items():
            parser.add_argument(flag, help=f"{' or '.join(values) or 'refused'}: {reason}")
        for flag, reason in REFUSED.items():
            parser.add_argument(flag, action="store_true", help=f"refused: {reason}")

    def run(self) -> None:
        from mrc_edit.core.errors import run_command

        sys.exit(run_command(self.export))

    def export(self) -> None:
        from mrc_edit.export.command import export

        args = vars(self.args)
        check_flags(args)
        ours = {"checkpoint": args["model"], "out": args["output"], "dtype": DTYPES[args["dtype"]], "variant": None}
        export(argparse.Namespace(**args | ours))


def check_flags(args: Mapping[str, object]) -> None:
    """Refuse what optimum's flags ask for and this export does not do.

    Raises:
        MRCError: such a flag.
    """
    from mrc_edit.core.errors import MRCError

    for flag, (values, reason) in FIXED.items():
        value = args[flag.strip("-").replace("-", "_")]
        if value is not None and value not in values:
            advice = f"leave it out or give {' or '.join(values)}" if values else "leave it out"
            raise MRCError(f"{flag} is {value!r}, which this export cannot do: {reason}; {advice}")
    for flag, reason in REFUSED.items():
        if args[flag.strip("-").replace("-", "_")]:
            raise MRCError(f"{flag} is nothing that this export can do: {reason}; leave it out")


REGISTER_COMMANDS = [(MRCExportCommand, ExportCommand)]
