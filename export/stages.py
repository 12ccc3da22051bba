"""The stages of an export: each reads what earlier ones left in `Work`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.adapters import Adapters
from ..core.errors import MRCError
from ..core.files import write_file, write_json
from ..engine.backends.eager import EagerBackend, geometry
from ..engine.graphs import EACH_STEP, GRAPHS
from ..engine.manifest import Artifact, Geometry, Manifest, digests
from ..engine.sampling import sampler_of
from ..model.adapters import load_adapted
from ..model.checkpoint import Checkpoint, checkpoint_digest
from ..model.scheduler import scheduler_config, write_scheduler
from .options import OPSET
from .tensorrt import Sizes, Toolkit, build_engine, engine_profiles, engine_sides
from .tensorrt_report import write_report
from .trace import convert, trace
from .validate import cases, eager_outputs, validate

TOOLS = ("mrc-edit", "torch", "diffusers", "transformers", "onnx", "onnxruntime")
FALLBACK = "vae_decoder_float32"  # in float16 exports, for images that overflow


@dataclass(frozen=True)
class Options:
    """The checked arguments of `export`."""

    source: Path
    out: Path
    dtype: str
    int8: Path | None
    tensorrt: Toolkit | None  # None for no engines
    sizes: Sizes
    max_batch: int
    precision_report: bool = False
    opset: int = OPSET
    layout: dict[str, Any] = field(default_factory=dict)  # keywords of `load_checkpoint`
    lora: Mapping[str | Path, float] | None = None
    embeddings: Mapping[str, str | Path] | None = None


@dataclass
class Work:
    """What the stages of an export share: each reads what earlier ones left here."""

    options: Options
    folder: Path  # temporary; it takes the place of `options.out` at the end
    digest: str = ""  # of the checkpoint before it was loaded
    checkpoint: Checkpoint | None = None
    adapters: Adapters = field(default_factory=Adapters)  # what was added to it
    geometry: Geometry | None = None
    expected: list[dict[str, np.ndarray]] = field(default_factory=list)
    wider: set[str] = field(default_factory=set)  # layers that stay in float32 in a half-precision export
    artifacts: list[Artifact] = field(default_factory=list)
    manifest: Manifest | None = None
    engines: list[dict[str, Any]] = field(default_factory=list)  # for the report


Stage = Callable[[Work], None]


def load(work: Work) -> None:
    options = work.options
    work.digest = checkpoint_digest(options.source, **options.layout)
    work.checkpoint, work.adapters = load_adapted(options.source, options.lora, options.embeddings, **options.layout)
    work.geometry = geometry(work.checkpoint)
    engine_sides(work.geometry, options.sizes, options.max_batch)


def reference(work: Work) -> None:
    """What the eager pipeline gives for the cases that the graphs are validated on."""
    assert work.checkpoint is not None
    backend = EagerBackend(work.checkpoint)
    work.expected = [eager_outputs(backend, case) for case in cases(backend.geometry)]


def add_precision_report(work: Work) -> None:
    """Write `precision.json` and `precision.html`, and note which layers stay wider."""
    from .precision import PHOTOGRAPHS, precision_report
    from .precision_page import page

    assert work.checkpoint is not None
    report = precision_report(work.checkpoint, work.options.int8 or PHOTOGRAPHS)
    write_json(work.folder / "precision.json", asdict(report))
    write_file(work.folder / "precision.html", page(report))
    for graph in report.graphs.values():
        if work.options.dtype in graph.formats:
            work.wider |= set(graph.formats[work.options.dtype].wider)


def trace_fallback(work: Work) -> None:
    assert work.checkpoint is not None
    path, opset = f"{FALLBACK}/model.onnx", work.options.opset
    work.artifacts.append(trace(work.checkpoint, "vae_decoder", "float32", work.folder, path, opset=opset))


def trace_graph(work: Work, graph: str) -> None:
    """Trace one graph; the part of the checkpoint is converted to the precision first."""
    assert work.checkpoint is not None
    row = GRAPHS[graph]
    precision = work.options.dtype if row.half else "float32"
    convert(getattr(work.checkpoint, row.part), row.part, getattr(torch, precision), work.wider)
    path, opset = f"{graph}/model.onnx", work.options.opset
    work.artifacts.append(trace(work.checkpoint, graph, precision, work.folder, path, work.wider, opset))


def write_settings(work: Work) -> None:
    """Write tokenizer and scheduler, begin the manifest, and release the checkpoint: 4 GB at full size."""
    checkpoint, folder, options = work.checkpoint, work.folder, work.options
    assert checkpoint is not None and work.geometry is not None
    if checkpoint_digest(options.source, **options.layout) != work.digest:
        raise MRCError(f"{options.source} changed while it was exported; export it again when nothing writes there")
    (folder / "tokenizer").mkdir()
    checkpoint.tokenizer.backend_tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    write_scheduler(checkpoint.scheduler, folder / "scheduler")
    # the fallback comes last: the first artifact of a graph is the one in the export's precision
    artifacts = sorted(work.artifacts, key=lambda artifact: artifact.path.startswith(FALLBACK))
    work.manifest = Manifest(
        checkpoint=work.digest,
        precision=options.dtype,
        geometry=work.geometry,
        scheduler=sampler_of(scheduler_config(checkpoint.scheduler)),
        artifacts=artifacts,
        files=digests(folder),
        tools={tool: version(tool) for tool in TOOLS},
        defaults=checkpoint.defaults,
        adapters=work.adapters,
    )
    work.manifest.write(folder)
    work.checkpoint = None


def add_differences(work: Work) -> None:
    """Validate what was written; each artifact gets its distance from eager."""
    manifest = work.manifest
    assert manifest is not None
    errors = validate(work.folder, manifest, work.expected)
    artifacts = [
        artifact if artifact.path.startswith(FALLBACK) else replace(artifact, difference=errors[artifact.role])
        for artifact in manifest.artifacts
    ]
    work.manifest = replace(manifest, artifacts=artifacts)


def add_int8(work: Work) -> None:
    """The step graphs in int8, each with a report of its layers beside it."""
    from .quantize import quantize_steps
    from .sensitivity import BUDGET

    manifest, pictures = work.manifest, work.options.int8
    assert manifest is not None and pictures is not None
    steps = [artifact for graph in EACH_STEP if (artifact := manifest.artifact(graph, "onnx"))]
    paths = {a.role: f"{a.role}_int8/model.onnx" for a in steps}
    errors = quantize_steps(work.folder, {a.role: a.path for a in steps}, paths, pictures)
    quantized = [replace(a, precision="int8", path=paths[a.role], difference=errors[a.role]) for a in steps]
    work.manifest = replace(
        manifest,
        artifacts=[*manifest.artifacts, *quantized],
        files=digests(work.folder),
        tools=manifest.tools | {name: version(name) for name in ("nncf", "openvino")},
        warnings=[*manifest.warnings, *above_budget(errors, BUDGET)],
    )


def above_budget(errors: dict[str, float], budget: float) -> list[str]:
    """A warning for each int8 graph whose layers together err more than the law they were chosen by says."""
    return [
        f"{role} in int8 moves the noise by {error:.1%}, more than the {budget:.0%} that its layers were chosen for; "
        "look at its edits before you use it, or calibrate on more images like those to be edited"
        for role, error in errors.items()
        if error > budget
    ]


def add_engine(work: Work, graph: str, precision: str) -> None:
    manifest, options = work.manifest, work.options
    assert manifest is not None and options.tensorrt is not None
    source = manifest.artifact(graph, "onnx", precision)
    assert source is not None
    profiles = engine_profiles(source, options.sizes, manifest.geometry, options.max_batch)
    engine, facts = build_engine(work.folder, source, profiles, options.tensorrt)
    work.engines.append(facts)
    tools = manifest.tools | {options.tensorrt.flavour: options.tensorrt.version}
    work.manifest = replace(manifest, artifacts=[*manifest.artifacts, engine], tools=tools)


def report_engines(work: Work) -> None:
    manifest, tools = work.manifest, work.options.tensorrt
    assert manifest is not None and tools is not None
    write_report(work.folder, tools, manifest.tools, work.engines)
    work.manifest = replace(manifest, files=digests(work.folder))


def write_manifest(work: Work) -> None:
    assert work.manifest is not None
    work.manifest.write(work.folder)
