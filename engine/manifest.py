"""The export folder's manifest: what is in it, what it was made from, and digests of everything.

Reading it needs no runtime. The SHA-256 of every file is checked, and what was checked is what is loaded.
"""

import hashlib
import json
import reprlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

from ..core.adapters import Adapters
from ..core.defaults import Defaults
from ..core.errors import MRCError
from ..core.files import file_digest, read_json, read_record
from ..core.paths import roots
from ..core.schema import Between

SCHEMA = 5
NAME = "manifest.json"
LONGEST = 1000  # characters of a file's name
CHUNK = 2**22  # bytes that are copied at a time
REMEDY = "run mrc-export again"
Token = Annotated[int, Between(0, 2**31 - 1)]


@dataclass(frozen=True)
class Geometry:
    """What the engine must know of a model."""

    rewards: bool  # False: a plain InstructPix2Pix model
    latent_channels: Annotated[int, Between(1, 1024)]
    vae_scale: Annotated[int, Between(1, 256)]  # pixels a latent, along one side
    multiple: Annotated[int, Between(1, 4096)]  # of both sides in pixels: one position of the deepest features
    resolution: Annotated[int, Between(1, 65_536)]  # pixels of the longer side that the model was trained for
    text_length: Annotated[int, Between(2, 65_536)]
    eos_token_id: Token
    pad_token_id: Token
    feature_channels: Annotated[int, Between(0, 65_536)] = 0  # of the feature bias that SmartEdit adds; 0: none
    embeds_guidance: bool = False  # a distilled student: one branch, the guidance scales are conditions


@dataclass(frozen=True)
class Bounds:
    """Shapes of one input that a TensorRT engine takes, and the one it is fastest at."""

    min: list[int]
    opt: list[int]
    max: list[int]


@dataclass(frozen=True)
class Artifact:
    """One graph in one precision for one runtime."""

    role: str  # name of the graph in engine.graphs
    runtime: str  # onnx, tensorrt or tensorrt_rtx
    precision: str
    path: str
    inputs: dict[str, list]  # name → dtype and dimensions
    outputs: dict[str, list]
    difference: float | None = None  # greatest relative error against eager when validated
    profiles: list[dict[str, Bounds]] = field(default_factory=list)  # TensorRT, in the engine's order: by input
    target: str = ""  # TensorRT: the GPUs it was built for, such as sm80,sm86


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`; `files` holds the digest of every file in the folder."""

    checkpoint: str  # digest of the checkpoint folder
    precision: str
    geometry: Geometry
    scheduler: str | None  # sampler of `scheduler/scheduler_config.json`; None if the engine does not have it
    artifacts: list[Artifact]
    files: dict[str, str]
    tools: dict[str, str]
    defaults: Defaults = field(default_factory=Defaults)
    adapters: Adapters = field(default_factory=Adapters)  # what was added to the checkpoint's weights and tokens
    warnings: list[str] = field(default_factory=list)  # what a user of the export should know
    schema: int = SCHEMA

    def artifact(self, graph: str, runtime: str, precision: str | None = None) -> Artifact | None:
        """The artifact of a graph for a runtime: the one of `precision`, or the first listed."""
        for artifact in self.artifacts:
            if (artifact.role, artifact.runtime) == (graph, runtime) and precision in (None, artifact.precision):
                return artifact
        return None

    def write(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        MRCError: not JSON, another schema, an entry that is missing or cannot be.
    """
    path = folder / NAME
    schema = read_json(path, REMEDY).get("schema")
    if schema != SCHEMA:
        raise MRCError(f"{path} has schema {schema!r}, this mrc-edit reads {SCHEMA}; {REMEDY}")
    manifest = read_record(path, Manifest, REMEDY)
    for name in (*manifest.files, *(artifact.path for artifact in manifest.artifacts)):
        if not name.isprintable() or not 0 < len(name) <= LONGEST:
            raise MRCError(f"{path} names a file {reprlib.repr(name)}, which cannot be; {REMEDY}")
    return manifest


def read_checked(folder: Path, manifest: Manifest, name: str) -> bytes:
    """The content of a file of the export, after checking that the manifest gives its digest.

    What was checked is what is returned: whoever changes the file afterwards changes nothing here.

    Raises:
        MRCError: a path that leaves the folder, a file that is missing, unlisted or changed.
    """
    path, expected = listed(folder, manifest, name)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected:
        raise changed(path)
    return content


def copy_checked(folder: Path, manifest: Manifest, name: str, target: Path) -> None:
    """Copy a file of the export to `target`, which nobody else can change, and check the copy as `read_checked` does.

    One thread copies while another computes the digest.
    """
    path, expected = listed(folder, manifest, name)
    digest, last = hashlib.sha256(), None
    with path.open("rb") as source, target.open("wb") as copy, ThreadPoolExecutor(1) as beside:
        while chunk := source.read(CHUNK):
            if last:
                last.result()
            last = beside.submit(digest.update, chunk)
            copy.write(chunk)
    if digest.hexdigest() != expected:
        raise changed(path)


def listed(folder: Path, manifest: Manifest, name: str) -> tuple[Path, str]:
    """Path of a file of the export, and the digest that the manifest gives it.

    Raises:
        MRCError: a path that leaves the folder, a file that is missing or unlisted.
    """
    path = folder / name
    if ".." in PurePosixPath(name).parts or not any(path.resolve().is_relative_to(root) for root in roots(folder)):
        raise MRCError(f"{name} leaves the export folder {folder}; do not trust this folder, export again")
    if name not in manifest.files:
        raise MRCError(f"{name} is not listed in {folder / NAME}; run mrc-export again")
    if not path.is_file():
        raise MRCError(f"{path} is missing; run mrc-export again")
    return path, manifest.files[name]


def changed(path: Path) -> MRCError:
    return MRCError(f"{path} is not the file that was exported: its SHA-256 differs; run mrc-export again")


def files_of(manifest: Manifest, artifact: Artifact) -> list[str]:
    """All files beside an artifact's own, such as external weights."""
    parent = str(PurePosixPath(artifact.path).parent)
    return [name for name in manifest.files if str(PurePosixPath(name).parent) == parent]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in an export folder but its manifest, by relative path."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != NAME]
    return {str(path.relative_to(folder)): file_digest(path) for path in paths}
