"""The export folder's manifest: what is in it, what it was made from, and digests of everything.

Reading it needs no runtime. The SHA-256 of every file is checked before anything loads the file.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from ..core.defaults import Defaults
from ..core.errors import MRCError
from ..core.files import file_digest

SCHEMA = 4
NAME = "manifest.json"


@dataclass(frozen=True)
class Geometry:
    """What the engine must know of a model."""

    rewards: bool  # False: a plain InstructPix2Pix model
    latent_channels: int
    vae_scale: int  # pixels a latent, along one side
    multiple: int  # both sides in pixels are multiples of it: one position of the deepest features
    resolution: int  # pixels of the longer side that the model was trained for
    text_length: int
    eos_token_id: int
    pad_token_id: int


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
    profile: dict[str, dict] = field(default_factory=dict)  # TensorRT: input → min, opt, max shapes
    target: str = ""  # TensorRT: the GPUs it was built for


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
        MRCError: not JSON, another schema, or fields missing.
    """
    path = folder / NAME
    try:
        value = json.loads(path.read_text())
        if value.get("schema") != SCHEMA:
            raise MRCError(
                f"{path} has schema {value.get('schema')}, this mrc-edit reads {SCHEMA}; run mrc-export again"
            )
        return Manifest(
            **{
                **value,
                "geometry": Geometry(**value["geometry"]),
                "defaults": Defaults(**value.get("defaults", {})),
                "artifacts": [Artifact(**artifact) for artifact in value["artifacts"]],
            }
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise MRCError(f"{path} is damaged ({error}); run mrc-export again") from None


def check_digests(folder: Path, manifest: Manifest, paths: Iterable[str]) -> None:
    """Check that each of `paths` lies in `folder` and has the digest that the manifest gives it.

    Raises:
        MRCError: a path that leaves the folder, a file that is missing, unlisted or changed.
    """
    for name in paths:
        path = folder / name
        if ".." in PurePosixPath(name).parts or not path.resolve().is_relative_to(folder.resolve()):
            raise MRCError(f"{name} leaves the export folder {folder}; do not trust this folder, export again")
        if name not in manifest.files:
            raise MRCError(f"{name} is not listed in {folder / NAME}; run mrc-export again")
        if not path.is_file():
            raise MRCError(f"{path} is missing; run mrc-export again")
        if file_digest(path) != manifest.files[name]:
            raise MRCError(f"{path} is not the file that was exported: its SHA-256 differs; run mrc-export again")


def files_of(manifest: Manifest, artifact: Artifact) -> list[str]:
    """All files beside an artifact's own, such as external weights."""
    parent = str(PurePosixPath(artifact.path).parent)
    return [name for name in manifest.files if str(PurePosixPath(name).parent) == parent]
