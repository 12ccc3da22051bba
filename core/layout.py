"""The flags that say in which layout a checkpoint is; every command that reads one has them."""

import argparse

LAYOUT = {
    "variant": "variant of the weights in a checkpoint folder, such as fp16",
    "vae": "folder, .safetensors file or OWNER/NAME of another VAE, in place of the checkpoint's own",
    "base": "folder or OWNER/NAME with the tokenizer and the settings that a single .safetensors file lacks",
}


def add_layout_options(parser: argparse._ActionsContainer) -> None:
    for name, text in LAYOUT.items():
        parser.add_argument(f"--{name}", help=f"{text} (default: none)")


def layout_options(args: argparse.Namespace) -> dict[str, str]:
    """Those that were given, by name, as `load_checkpoint` takes them."""
    return {name: value for name in LAYOUT if (value := getattr(args, name)) is not None}
