"""An export folder as a model repository for NVIDIA Triton (docs/triton.md).

The model `mrc` edits: Triton's Python backend runs `export.triton_model`, beside the whole export. Beside it stands a
model for every graph, whose inputs and outputs are those of the manifest. Needs no PyTorch.
"""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ..core.errors import MRCError
from ..core.files import anything, check_target, foreign_files, replace_folder
from ..engine.manifest import NAME, Artifact, Manifest, read_checked, read_manifest

MODEL = "mrc"  # the one that edits; the graphs are mrc_unet and so on
VERSION = "1"
EXPORT = PurePosixPath(MODEL, VERSION, "export")
COMPILED = f"{MODEL}/{VERSION}/__pycache__/"  # Triton's Python writes it
CONFIG = "config.pbtxt"
MODEL_FILE = Path(__file__).with_name("triton_model.py")
ADVICE = "give a new folder, or --overwrite to replace it with all that is in it"
# By runtime of a graph: its name in Triton, and the name of its file there. Triton has none for TensorRT for RTX.
BACKENDS = {"onnx": ("onnxruntime", "model.onnx"), "tensorrt": ("tensorrt", "model.plan")}
TYPES = {"float32": "FP32", "int64": "INT64"}

Ports = Mapping[str, tuple[str, list[int]]]  # name → type and dimensions, -1 for an open one
# Arguments of `AsyncEngine.edit`; numbers are float64, as Python's, so that nothing is rounded on the way
INPUTS: Ports = {
    "image": ("STRING", [1]),  # the bytes of a file
    "instruction": ("STRING", [1]),
    "reward_scores": ("FP64", [3]),
    "reward_text": ("STRING", [1]),
    "reward_guidance": ("FP64", [-1, 3]),  # a row for both branches, or one for "image" and one for "empty"
    "reward_guidance_text": ("STRING", [1]),
    "negative_prompt": ("STRING", [1]),
    "num_inference_steps": ("INT64", [1]),
    "guidance_scale": ("FP64", [1]),
    "image_guidance_scale": ("FP64", [1]),
    "scheduler": ("STRING", [1]),
    "seed": ("INT64", [-1]),  # one an edit
    "num_images_per_prompt": ("INT64", [1]),
    "resolution": ("INT64", [1]),
    "fit": ("STRING", [1]),
    "keep_size": ("BOOL", [1]),
    "tier": ("STRING", [1]),
}
REQUIRED = {"image", "instruction"}
# Attributes of `EditResult`
OUTPUTS: Ports = {
    "images": ("UINT8", [-1, -1, -1, 3]),  # edits, rows, columns, RGB
    "boxes": ("INT64", [-1, 4]),
    "seed": ("INT64", [-1]),
    "batch_size": ("INT64", [1]),
    "waited": ("FP64", [1]),
    "warnings": ("STRING", [-1]),
}
# The queue's limits are read by Triton and by the model, which gives them to its AsyncEngine
MRC_SETTINGS = """\
model_transaction_policy { decoupled: true }
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching {
  default_queue_policy {
    max_queue_size: 64
    default_timeout_microseconds: 600000000
    allow_timeout_override: true
  }
}
parameters { key: "max_batch" value { string_value: "8" } }
"""


def check_repository(folder: Path) -> None:
    """Check that a folder is such a repository and holds nothing else.

    Raises:
        MRCError: no export in it, one of another version, or a file that is not of the repository.
    """
    try:
        manifest = read_manifest(folder / EXPORT)
    except MRCError as error:
        raise MRCError(f"{folder} exists and is no Triton repository of this version ({error}); {ADVICE}") from None
    foreign = foreign_files(folder, layout(manifest))
    if kept := [name for name in foreign if not name.startswith(COMPILED)]:
        raise MRCError(f"{folder} holds {kept[0]}, which is not of the repository; {ADVICE}")


def check_free(repository: Path, overwrite: bool, *sources: Path) -> Callable[[Path], None]:
    """Refuse a repository that may not be written, before an export takes its time.

    Args:
        sources: the export and what it is made from.

    Returns:
        The check of `core.files.replace_folder`.

    Raises:
        MRCError: a folder that holds one of the sources, or what `check_repository` refuses.
    """
    for source in sources:
        if source.resolve().is_relative_to(repository.resolve()):
            raise MRCError(f"{repository} holds {source}; give another folder for the Triton repository")
    check = anything if overwrite else check_repository
    check_target(repository, check)
    return check


def write_repository(export: Path, repository: Path, overwrite: bool = False) -> None:
    """Write the Triton repository of an export folder, whole or not at all; an older one there is replaced.

    The graphs' files are those of the export in `mrc`, as hard links where the file system has them.

    Args:
        overwrite: replace `repository` whatever it holds.

    Raises:
        MRCError: a damaged export, or as `check_free`.
    """
    check = check_free(repository, overwrite, export)
    manifest = read_manifest(export)
    with replace_folder(repository, check, wait=False) as folder:
        for name in tqdm(manifest.files, desc="Triton repository", unit="file", disable=None):
            put(folder / EXPORT / name, read_checked(export, manifest, name))
        manifest.write(folder / EXPORT)
        for path, content in layout(manifest).items():
            if isinstance(content, str):
                put(folder / path, content.encode())
            elif content is not None:
                link(folder / content, folder / path)


def layout(manifest: Manifest) -> dict[str, str | PurePosixPath | None]:
    """Every file of the repository: its text, the file there that it is the same as, or None if it is the export's."""
    files: dict[str, str | PurePosixPath | None] = {str(EXPORT / name): None for name in (NAME, *manifest.files)}
    files[f"{MODEL}/{CONFIG}"] = mrc_config()
    files[f"{MODEL}/{VERSION}/model.py"] = MODEL_FILE.read_text()
    for artifact in manifest.artifacts:
        if artifact.runtime in BACKENDS:
            name, (_, file) = model_name(artifact), BACKENDS[artifact.runtime]
            files[f"{name}/{CONFIG}"] = graph_config(artifact)
            for source in manifest.files:
                if source.startswith(artifact.path):  # such as model.onnx and model.onnx.data
                    files[f"{name}/{VERSION}/{file}{source.removeprefix(artifact.path)}"] = EXPORT / source
    return files


def model_name(artifact: Artifact) -> str:
    """Such as mrc_unet, mrc_unet_int8 and mrc_unet_float32_tensorrt."""
    if artifact.runtime == "onnx":
        return f"{MODEL}_{PurePosixPath(artifact.path).parent}"
    return f"{MODEL}_{artifact.role}_{artifact.precision}_{artifact.runtime}"


def mrc_config() -> str:
    return config(MODEL, "python", "model.py", INPUTS, OUTPUTS, optional=INPUTS.keys() - REQUIRED) + MRC_SETTINGS


def graph_config(artifact: Artifact) -> str:
    """Of a graph that Triton itself runs. All dimensions are the graph's own: none is Triton's batch."""
    inputs, outputs = (
        {name: (TYPES[kind], [-1 if isinstance(dim, str) else dim for dim in dims]) for name, (kind, *dims) in ports}
        for ports in (artifact.inputs.items(), artifact.outputs.items())
    )
    profiles = ", ".join(f'"{i}"' for i in range(len(artifact.profiles)))
    more = f"instance_group [ {{ kind: KIND_GPU profile: [{profiles}] }} ]\n" if profiles else ""
    return config(model_name(artifact), *BACKENDS[artifact.runtime], inputs, outputs) + more


def config(
    name: str, backend: str, file: str, inputs: Ports, outputs: Ports, optional: Collection[str] = ()
) -> str:  # fmt: skip
    """A `config.pbtxt`."""
    lines = [f'name: "{name}"', f'backend: "{backend}"', f'default_model_filename: "{file}"', "max_batch_size: 0"]
    for port, (kind, dims) in inputs.items():
        more = " optional: true" if port in optional else ""
        lines.append(f'input {{ name: "{port}" data_type: TYPE_{kind} dims: {dims}{more} }}')
    lines += [
        f'output {{ name: "{port}" data_type: TYPE_{kind} dims: {dims} }}' for port, (kind, dims) in outputs.items()
    ]
    return "\n".join(lines) + "\n"


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def link(source: Path, path: Path) -> None:
    """A second name of a file, or a copy where the file system has no such names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
