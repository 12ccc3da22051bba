"""What is added to a model at load: LoRA files, merged into its weights, and tokens of textual inversion."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import MRCError

ADAPTERS = ("lora", "embeddings")  # arguments of whatever loads a checkpoint


@dataclass(frozen=True)
class MergedLora:
    """A LoRA file as a manifest records it."""

    file: str  # its name, without the folder
    sha256: str
    scale: float


@dataclass(frozen=True)
class AddedToken:
    """A token of textual inversion as a manifest records it."""

    token: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Adapters:
    """All that was added, in order."""

    lora: list[MergedLora] = field(default_factory=list)
    embeddings: list[AddedToken] = field(default_factory=list)


def add_adapter_flags(parser: argparse._ActionsContainer) -> None:
    """Add `--lora` and `--embedding`, each of which may be given several times."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE:SCALE",
        help="merge a LoRA file at this scale; repeatable (default: none)",
    )
    parser.add_argument(
        "--embedding",
        action="append",
        default=[],
        metavar="TOKEN=FILE",
        help="add a token of textual inversion; repeatable (default: none)",
    )


def adapter_flags(lora: object = None, embeddings: object = None) -> str:
    """The flags of `add_adapter_flags` for these arguments, for messages."""
    scales = lora.items() if isinstance(lora, Mapping) else ()
    files = embeddings.items() if isinstance(embeddings, Mapping) else ()
    flags = [("--lora", f"{file}:{scale}") for file, scale in scales]
    flags += [("--embedding", f"{token}={file}") for token, file in files]
    return shlex.join(part for flag in flags for part in flag)


def parse_loras(values: list[str]) -> dict[str | Path, float]:
    """Scales by file of `--lora FILE:SCALE`.

    Raises:
        MRCError: a value of another form, or a file given twice.
    """
    scales: dict[str | Path, float] = {}
    for value in values:
        file, _, text = value.rpartition(":")
        try:
            scale = float(text)
        except ValueError:
            file = ""
        if not file:
            raise MRCError(f"--lora is {value!r}; give FILE:SCALE, such as style.safetensors:0.8")
        if file in scales:
            raise MRCError(f"--lora has {file} twice; give it once, with the sum of the scales")
        scales[file] = scale
    return scales


def parse_embeddings(values: list[str]) -> dict[str, str]:
    """Files by token of `--embedding TOKEN=FILE`.

    Raises:
        MRCError: a value of another form, or a token given twice.
    """
    files: dict[str, str] = {}
    for value in values:
        token, _, file = value.partition("=")
        if not (token and file):
            raise MRCError(f"--embedding is {value!r}; give TOKEN=FILE, such as '<cat>=cat.safetensors'")
        if token in files:
            raise MRCError(f"--embedding has the token {token} twice; give each file a token of its own")
        files[token] = file
    return files
