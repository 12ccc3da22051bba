"""What the backends that read an export folder share: the manifest, files with the right digest, settings."""

import os
from pathlib import Path

from tokenizers import Tokenizer

from ...core.errors import MRCError
from ...core.files import parse_json
from ..graphs import EACH_STEP
from ..manifest import REMEDY, Artifact, check_digests, files_of, read_manifest
from ..onnx_graph import check_graph
from .graphs import GraphBackend, Value


class ExportBackend(GraphBackend[Value]):
    """An open export folder. With precision "int8" the step graphs are the quantized ones, all others as exported."""

    def __init__(self, folder: Path, precision: str | None = None) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.geometry, self.defaults = self.manifest.geometry, self.manifest.defaults
        if precision not in (None, "int8", self.manifest.precision):
            raise MRCError(
                f"precision is {precision!r} and {folder} is a {self.manifest.precision} export; "
                f"run mrc-export --dtype {precision}, or leave it out"
            )
        self.precision = precision or self.manifest.precision
        settings = [name for name in self.manifest.files if name.startswith(("tokenizer/", "scheduler/"))]
        check_digests(folder, self.manifest, {*settings, "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"})
        scheduler, tokenizer = folder / "scheduler" / "scheduler_config.json", folder / "tokenizer" / "tokenizer.json"
        self.scheduler = parse_json(scheduler.read_bytes(), scheduler, REMEDY)
        self.tokenizer = parse_tokenizer(tokenizer.read_bytes(), tokenizer)

    def artifact(self, graph: str) -> Artifact:
        """The ONNX file of a graph."""
        quantized = "int8" if self.precision == "int8" and graph in EACH_STEP else None
        artifact = self.manifest.artifact(graph, "onnx", quantized)
        if artifact is None:
            flag = " with --int8" if quantized else ""
            raise MRCError(f"{self.folder} has no {quantized or 'ONNX'} graph {graph!r}; run mrc-export again{flag}")
        return artifact

    def checked_path(self, artifact: Artifact) -> Path:
        """Path of an artifact, after checking that its files are those that were exported."""
        check_digests(self.folder, self.manifest, [artifact.path, *files_of(self.manifest, artifact)])
        path = self.folder / artifact.path
        check_graph(path.read_bytes(), path)
        return path


def parse_tokenizer(content: bytes, path: Path) -> Tokenizer:
    """The tokenizer in the content of a `tokenizer.json`.

    Raises:
        MRCError: it holds something else.
    """
    parse_json(content, path, REMEDY)  # deep JSON would overflow the stack of the library
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library has no exceptions of its own
        raise MRCError(f"{path} is no tokenizer ({error}); {REMEDY}") from None


def cache_folder() -> Path:
    """Where graphs optimized for this machine are stored: `MRC_CACHE`, or mrc in the user's cache folder.

    Not in the export folder, which may be read-only and holds what its manifest lists, no more.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MRC_CACHE") or Path(home) / "mrc")
