"""A checkpoint folder becomes an export folder, whole and validated, or not at all."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm

from ..core.errors import MRCError
from ..core.files import file_digest, replace_folder
from ..engine.backends.eager import EagerBackend, geometry
from ..engine.backends.onnxruntime import OnnxRuntimeBackend
from ..engine.contract import INPUTS, STEP_ROLES
from ..engine.manifest import Artifact, Manifest
from ..engine.sampling import SAMPLERS
from ..model import load_checkpoint
from ..model.checkpoint import Checkpoint, checkpoint_digest
from ..model.graphs import check_injection
from . import tensorrt
from .calibration import pairs
from .loop import add_loop
from .trace import graph, trace
from .validate import cases, differences, outputs, two_steps
from .widen import widened

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOOLS = ("mrc-edit", "torch", "diffusers", "transformers", "onnx", "onnxruntime")


def export(
    checkpoint_folder: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    trt: bool = False,
    loop: bool = False,
    int8: str | Path | None = None,
    sizes: tuple[int, int, int] = (256, 512, 768),
    max_batch: int = 1,
) -> Manifest:
    """Export all graphs, check them against eager, and with `trt` build their engines.

    Args:
        checkpoint_folder: MRC or plain InstructPix2Pix checkpoint.
        out: the export folder; an old one stays until the new one is whole.
        dtype: float32, float16 or bfloat16, inside the graphs; all inputs and outputs are float32.
            The conditioner, which runs once an edit, stays in float32, and a float16 export
            holds a float32 VAE decoder besides, for images that overflow.
        loop: also write all steps as one graph (docs/loop.md), for the option of that name.
        int8: folder of pictures like those to be edited; the step graphs are also written in int8, calibrated on
            edits of these (`export.calibration`), for `precision="int8"`.
        sizes: least, best and greatest side in pixels of the TensorRT engines.
        max_batch: images a pass of the TensorRT engines.

    Raises:
        MRCError: an unusable checkpoint or argument, rewards after every block, a graph that differs
            from eager, no TensorRT.
    """
    out = Path(out)
    if dtype not in PRECISIONS:
        raise MRCError(f"dtype is {dtype!r}; choose one of {', '.join(PRECISIONS)}")
    if int8 is not None and dtype != "float32":
        raise MRCError(f"int8 graphs are made from float32 ones and dtype is {dtype!r}; leave out one of the two")
    check_target(Path(checkpoint_folder), out)
    stages = 4 + len(INPUTS) * (1 + trt) + loop + (dtype == "float16") + (int8 is not None)
    with tqdm(total=stages, desc="export", unit="stage", disable=None) as bar:

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            bar.set_description(name)
            yield
            bar.update()

        with stage("load"):
            flavour = tensorrt.available() if trt else ""
            if int8 is not None:
                check_int8(Path(int8))
            checkpoint = load_checkpoint(checkpoint_folder)
            check_injection(checkpoint.unet)
            shape = geometry(checkpoint)
            check_sizes(sizes, shape.multiple, max_batch)
        with stage("eager reference"):
            eager = EagerBackend(checkpoint)
            expected = [outputs(eager, case) | (two_steps(eager, case) if loop else {}) for case in cases(shape)]
        with replace_folder(out) as folder:
            artifacts = trace_all(checkpoint, dtype, folder, stage)
            if loop:
                with stage("unet_loop"):
                    artifacts.append(add_loop(folder, next(a for a in artifacts if a.role == "unet")))
            write_settings(checkpoint, folder)
            manifest = Manifest(
                checkpoint=checkpoint_digest(checkpoint_folder),
                precision=dtype,
                geometry=shape,
                scheduler=sampler_name(type(checkpoint.scheduler).__name__),
                artifacts=artifacts,
                files=digests(folder),
                tools={tool: version(tool) for tool in TOOLS},
            )
            del checkpoint, eager  # 4 GB at full size, which the next stages need
            with stage("validate"):
                manifest.write(folder)
                worst = validate(folder, manifest, expected)
                manifest = replace(manifest, artifacts=[with_difference(a, worst) for a in artifacts])
            if int8 is not None:
                manifest = add_int8(folder, manifest, Path(int8), stage)
            if trt:
                manifest = add_engines(folder, manifest, flavour, sizes, max_batch, stage)
            with stage("write manifest"):
                manifest.write(folder)
    return manifest


def check_target(checkpoint: Path, out: Path) -> None:
    """Refuse to replace anything that is not an export folder."""
    if out.resolve() == checkpoint.resolve() or checkpoint.resolve().is_relative_to(out.resolve()):
        raise MRCError(f"{out} holds the checkpoint itself; give another folder to write to")
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "manifest.json").is_file()):
        raise MRCError(f"{out} exists and is no export folder; give a new folder, or remove it")


def check_sizes(sizes: tuple[int, int, int], multiple: int, max_batch: int) -> None:
    if not 0 < sizes[0] <= sizes[1] <= sizes[2] or any(size % multiple for size in sizes):
        raise MRCError(f"sizes are {sizes}; give min ≤ opt ≤ max, multiples of {multiple}")
    if max_batch < 1:
        raise MRCError(f"max_batch is {max_batch}; give a whole number from 1")


def sampler_name(class_name: str) -> str:
    """Our name of a diffusers scheduler class; the released default where we have none."""
    short = class_name.removesuffix("Scheduler").removesuffix("Discrete").lower()
    names = {name.replace("_", ""): name for name in SAMPLERS} | {"dpmsolvermultistep": "dpmpp_2m"}
    return names.get(short, "euler_ancestral")


def trace_all(checkpoint: Checkpoint, dtype: str, folder: Path, stage: Callable) -> list[Artifact]:
    """Trace every graph; parts are cast to `dtype` when their float32 graphs are done."""
    artifacts = []
    fallback = []
    if dtype == "float16":
        with stage("vae_decoder float32"):
            fallback = [trace(checkpoint, "vae_decoder", "float32", folder, "vae_decoder_float32/model.onnx")]
    for role in sorted(INPUTS, key=lambda role: role != "conditioner"):
        precision = "float32" if role == "conditioner" else dtype
        with stage(role):
            # not module.to: see model.checkpoint.fill
            torch.nn.Module.to(graph(checkpoint, role), PRECISIONS[precision])
            artifacts.append(trace(checkpoint, role, precision, folder, f"{role}/model.onnx"))
    return artifacts + fallback


def write_settings(checkpoint: Checkpoint, folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    checkpoint.tokenizer.backend_tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    checkpoint.scheduler.save_pretrained(folder / "scheduler")


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): file_digest(path) for path in paths}


def validate(folder: Path, manifest: Manifest, expected: list[dict]) -> dict[str, float]:
    """Run what was written, with ONNX Runtime; bfloat16 graphs, which it has no kernels for, widened."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="widened-") as scratch:
        runnable = folder
        if manifest.precision == "bfloat16":
            runnable = Path(scratch)
            widened(folder, runnable, manifest)
        backend = OnnxRuntimeBackend(runnable, cached=False)
        found = [outputs(backend, case) for case in cases(manifest.geometry)]
        del backend  # before another holds the same weights
        if manifest.artifact("unet_loop", "onnx"):
            backend = OnnxRuntimeBackend(runnable, cached=False, loop=True)
            found = [
                have | two_steps(backend, case) for have, case in zip(found, cases(manifest.geometry), strict=True)
            ]
    return differences(expected, found, manifest.precision, folder)


def check_int8(images: Path) -> None:
    """Refuse before minutes of work what int8 cannot begin with."""
    missing = [name for name in ("nncf", "openvino") if find_spec(name) is None]
    if missing:
        raise MRCError(f"int8 needs {', '.join(missing)}; pip install 'mrc-edit[int8]'")
    pairs(images, 1)


def add_int8(folder: Path, manifest: Manifest, images: Path, stage: Callable) -> Manifest:
    """The step graphs in int8, each with a report of its layers beside it."""
    from .quantize import quantize_steps

    with stage("int8"):
        steps = [artifact for role in STEP_ROLES if (artifact := manifest.artifact(role, "onnx"))]
        paths = {a.role: f"{a.role}_int8/model.onnx" for a in steps}
        errors = quantize_steps(folder, {a.role: a.path for a in steps}, paths, images)
        made = [replace(a, precision="int8", path=paths[a.role], difference=errors[a.role]) for a in steps]
        tools = {name: version(name) for name in ("nncf", "openvino")}
        return replace(
            manifest, artifacts=[*manifest.artifacts, *made], files=digests(folder), tools=manifest.tools | tools
        )


def with_difference(artifact: Artifact, worst: dict[str, float]) -> Artifact:
    is_fallback = artifact.path.startswith("vae_decoder_float32")
    return artifact if is_fallback else replace(artifact, difference=worst[artifact.role])


def add_engines(
    folder: Path, manifest: Manifest, flavour: str, sizes: tuple[int, int, int], max_batch: int, stage: Callable
) -> Manifest:
    engines = []
    for role in INPUTS:  # not unet_loop, see docs/loop.md
        source = manifest.artifact(role, "onnx")
        assert source is not None
        with stage(f"TensorRT {role}"):
            shapes = tensorrt.profile(source, sizes, manifest.geometry.vae_scale, max_batch)
            engines.append(tensorrt.build_engine(folder, source, shapes))
    name, number = flavour.split()
    return replace(
        manifest,
        artifacts=[*manifest.artifacts, *engines],
        files=manifest.files | {engine.path: file_digest(folder / engine.path) for engine in engines},
        tools=manifest.tools | {name: number},
    )
