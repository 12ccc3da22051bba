"""What the backends that read an export folder share: the manifest, confirmed files, settings."""

import json
import os
from pathlib import Path

from tokenizers import Tokenizer

from ...core.errors import MRCError
from ..contract import INPUTS, STEP_ROLES
from ..manifest import Artifact, confirmed, files_of, read_manifest
from .graphs import GraphBackend


class ExportBackend(GraphBackend):
    """An open export folder.

    With precision "int8" the step graphs are the quantized ones, all others the export's own. With `loop` all
    steps are one graph, in place of the step graphs.
    """

    def __init__(self, folder: Path, precision: str | None = None, loop: bool = False) -> None:
        self.folder = folder
        self.unet_loop = self.steps if loop else None
        self.roles = [role for role in INPUTS if role not in STEP_ROLES] + ["unet_loop"] if loop else list(INPUTS)
        self.manifest = read_manifest(folder)
        self.geometry = self.manifest.geometry
        if loop and precision == "int8":
            raise MRCError("all steps in one graph are not made in int8; leave out loop or precision")
        if precision not in (None, "int8", self.manifest.precision):
            raise MRCError(
                f"precision is {precision!r} and {folder} is a {self.manifest.precision} export; "
                f"run mrc-export --dtype {precision}, or leave it out"
            )
        self.precision = precision or self.manifest.precision
        settings = [name for name in self.manifest.files if name.startswith(("tokenizer/", "scheduler/"))]
        confirmed(folder, self.manifest, {*settings, "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"})
        self.scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))

    def artifact(self, role: str) -> Artifact:
        """The ONNX graph of a role."""
        quantized = "int8" if self.precision == "int8" and role in STEP_ROLES else None
        artifact = self.manifest.artifact(role, "onnx", quantized)
        if artifact is None:
            flag = " with --int8" if quantized else " with --loop" if role == "unet_loop" else ""
            raise MRCError(f"{self.folder} has no {quantized or 'ONNX'} graph {role!r}; run mrc-export again{flag}")
        return artifact

    def confirm(self, artifact: Artifact) -> Path:
        """Path of an artifact whose files are what was exported."""
        confirmed(self.folder, self.manifest, [artifact.path, *files_of(self.manifest, artifact)])
        return self.folder / artifact.path


def cache_folder() -> Path:
    """Where graphs prepared for this machine are kept: `MRC_CACHE`, or mrc in the user's cache folder.

    Not in the export folder, which may be read-only and is what its manifest says, no more.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MRC_CACHE") or Path(home) / "mrc")
