"""What the backends that read an export folder share: the manifest, files with the right digest, settings."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tokenizers import Tokenizer

from ...core.errors import MRCError
from ...core.files import parse_json
from ...core.temporary import private_folder
from ..graph_shapes import check_shapes, sizes_of
from ..graphs import EACH_STEP, GRAPHS
from ..manifest import REMEDY, Artifact, copy_checked, files_of, read_checked, read_manifest
from ..onnx_graph import check_graph
from ..text import whole_texts
from .graphs import GraphBackend, Value

TOKENIZER, SCHEDULER = "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"


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
        listed = [name for name in self.manifest.files if name.startswith(("tokenizer/", "scheduler/"))]
        settings = {name: read_checked(folder, self.manifest, name) for name in {*listed, TOKENIZER, SCHEDULER}}
        self.scheduler = parse_json(settings[SCHEDULER], folder / SCHEDULER, REMEDY)
        self.tokenizer = whole_texts(parse_tokenizer(settings[TOKENIZER], folder / TOKENIZER))
        for warning in self.manifest.warnings if self.precision == "int8" else ():  # of what int8 cost
            warnings.warn(f"{folder}: {warning}", stacklevel=2)
        self.dimensions = sizes_of(self.geometry)
        self.checked = {
            artifact.path: self.graph(artifact)
            for artifact in self.manifest.artifacts
            if artifact.runtime == "onnx" and artifact.role in GRAPHS and (folder / artifact.path).is_file()
        }

    def artifact(self, graph: str) -> Artifact:
        """The ONNX file of a graph."""
        quantized = "int8" if self.precision == "int8" and graph in EACH_STEP else None
        artifact = self.manifest.artifact(graph, "onnx", quantized)
        if artifact is None:
            flag = " with --int8" if quantized else ""
            raise MRCError(f"{self.folder} has no {quantized or 'ONNX'} graph {graph!r}; run mrc-export again{flag}")
        return artifact

    def graph(self, artifact: Artifact) -> bytes:
        """An ONNX file, without the weights beside it, after checking that it is what the manifest says."""
        path, content = self.folder / artifact.path, read_checked(self.folder, self.manifest, artifact.path)
        check_graph(content, path)
        check_shapes(content, artifact, self.geometry, self.dimensions, path)
        return content

    def content(self, artifact: Artifact) -> tuple[bytes, dict[str, bytes]]:
        """A graph and its external data by name, after checking that they are what was exported."""
        graph = self.checked.get(artifact.path) or self.graph(artifact)
        external = self.external(artifact)
        return graph, {PurePosixPath(name).name: read_checked(self.folder, self.manifest, name) for name in external}

    def external(self, artifact: Artifact) -> list[str]:
        """The files beside a graph."""
        return [name for name in files_of(self.manifest, artifact) if name != artifact.path]

    @contextmanager
    def checked_copy(self, artifact: Artifact) -> Iterator[Path]:
        """Path of a copy of a graph beside its external data, for a runtime that reads files, until the block ends.

        Nobody else can change it or add to it, so what the runtime reads is what was exported. A runtime that
        maps the files may go on after the block.
        """
        with private_folder() as folder:
            graph = folder / PurePosixPath(artifact.path).name
            try:
                graph.write_bytes(self.checked.get(artifact.path) or self.graph(artifact))
                for name in self.external(artifact):
                    copy_checked(self.folder, self.manifest, name, folder / PurePosixPath(name).name)
            except OSError as error:
                reason = f"{artifact.path} cannot be copied to {folder} ({error.strerror})"
                raise MRCError(f"{reason}; set TMPDIR to a folder with more space") from None
            yield graph


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


def cache_folder() -> Path | None:
    """Where graphs optimized for this machine are stored: `MRC_CACHE`, or mrc in the user's cache folder.

    Not in the export folder, which may be read-only and holds what its manifest lists, no more. None, with a warning,
    if it cannot be made, or if others could give the engine another graph there.
    """
    given = os.environ.get("MRC_CACHE")
    folder = Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mrc"))
    try:
        folder = folder if given else folder.expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        fault = error.strerror or str(error)
    except RuntimeError:
        fault = "this user has no home folder"
    else:
        others = "others can write there" if state.st_mode & 0o022 else ""
        fault = others if state.st_uid == os.getuid() else "it belongs to another user"
    if fault:
        without_cache(folder, fault)
        return None
    return folder


warned: set[Path] = set()  # caches


def without_cache(folder: Path, reason: str) -> None:
    """Warn, once a folder, that graphs are optimized each time they are opened."""
    if folder not in warned:
        warned.add(folder)
        warnings.warn(
            f"{folder} cannot be the cache of optimized graphs ({reason}), so they are optimized at every start; "
            "set MRC_CACHE to a folder of your own",
            stacklevel=2,
        )
