"""TensorRT engines from the exported ONNX graphs, each built in a child process (`export.tensorrt_build`).

The child's memory goes back when it ends, and a crash in native code becomes an error message.
TensorRT for RTX builds without a GPU; data-centre TensorRT is used where it can be imported. Both
take their precision from the ONNX graph (strongly typed).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..core.child import ask
from ..core.errors import MRCError
from ..engine.manifest import Artifact, Bounds, Geometry
from ..engine.profiles import profile, sides

Sizes = tuple[int | None, int | None, int | None]  # least, best and greatest side in pixels
FOLDER = "tensorrt"  # of the engines in the export
SIZED = {"height", "rows"}  # dimensions of graphs whose work goes with the size of the image
NOT_BY_DEFAULT = ("sm75",)  # its float32 matrix products are refused


@dataclass(frozen=True)
class Toolkit:
    """The TensorRT that builds here: flavour, version, and the GPUs that it builds for."""

    flavour: str
    version: str
    targets: tuple[str, ...]


def toolkit() -> Toolkit:
    """The TensorRT of this machine.

    Raises:
        MRCError: none can be imported, or it needs a GPU and there is none.
    """
    found = child({"do": "describe"}, "TensorRT cannot be used here")
    return Toolkit(found["flavour"], found["version"], tuple(found["targets"]))


def with_targets(tools: Toolkit, asked: Sequence[str] | None) -> Toolkit:
    """The toolkit for the GPUs asked for, in its own order, or for all that every graph builds for.

    Raises:
        MRCError: one that this TensorRT does not build for.
    """
    if asked is None:
        asked = [target for target in tools.targets if target not in NOT_BY_DEFAULT]
    if not asked or (wrong := sorted(set(asked) - set(tools.targets))):
        raise MRCError(
            f"trt_targets are {' '.join(wrong) if asked else 'none'}; {tools.flavour} {tools.version} "
            f"builds here for {', '.join(tools.targets)}"
        )
    return replace(tools, targets=tuple(target for target in tools.targets if target in asked))


def tools_for(asked: Sequence[str] | None) -> Toolkit:
    """`toolkit` for the GPUs asked for; raises as that and `with_targets`."""
    return with_targets(toolkit(), asked)


def check_sizes(sizes: Sizes, max_batch: int) -> None:
    """Refuse sizes of TensorRT engines that no model can have."""
    given = [size for size in sizes if size is not None]
    if not all(type(size) is int and size > 0 for size in given) or given != sorted(given):
        raise MRCError(f"sizes are {sizes}; give min ≤ opt ≤ max")
    if max_batch < 1:
        raise MRCError(f"max_batch is {max_batch}; give a whole number from 1")


def engine_sides(geometry: Geometry, sizes: Sizes, max_batch: int) -> tuple[int, int, int]:
    """The sides of the engines, with those of the model in place of None; raises as `engine.profiles.sides`."""
    usual = sides(geometry, None, max_batch)
    least, best, greatest = (own if size is None else size for own, size in zip(usual, sizes, strict=True))
    return sides(geometry, (least, best, greatest), max_batch)


def engine_profiles(source: Artifact, sizes: Sizes, geometry: Geometry, max_batch: int) -> list[dict[str, Bounds]]:
    """The profiles of an engine, the tightest first: one image of the best size with three branches, then all."""
    wide = profile(source, engine_sides(geometry, sizes, max_batch), geometry.vae_scale, max_batch)
    ranges = [{name: Bounds(**bounds) for name, bounds in wide.items()}]
    if any(SIZED.intersection(dims) for dims in source.inputs.values()):
        ranges.insert(0, {name: Bounds(*[bounds["opt"]] * 3) for name, bounds in wide.items()})
    return ranges


def build_engine(
    folder: Path, source: Artifact, profiles: list[dict[str, Bounds]], tools: Toolkit
) -> tuple[Artifact, dict[str, Any]]:
    """Build the engine of one ONNX artifact under `folder/tensorrt`.

    Returns:
        The engine, and what the build's report says of it.

    Raises:
        MRCError: no TensorRT here, the build failed, or its process was killed; with TensorRT's own words.
    """
    stem = Path(source.path).parent.name
    path = f"{FOLDER}/{stem}.{tools.flavour}.{'-'.join(tools.targets)}.{source.precision}.engine"
    request: dict[str, Any] = {
        "do": "build",
        "flavour": tools.flavour,
        "onnx": str(folder / source.path),
        "engine": str(folder / path),
        "targets": tools.targets,
        "profiles": [{name: asdict(bounds) for name, bounds in each.items()} for each in profiles],
    }
    (folder / FOLDER).mkdir(exist_ok=True)
    facts = child(request, f"TensorRT could not build {stem}")
    weights = sum(file.stat().st_size for file in (folder / source.path).parent.glob("model.onnx*"))
    engine = Artifact(
        role=source.role,
        runtime=tools.flavour,
        precision=source.precision,
        path=path,
        inputs=source.inputs,
        outputs=source.outputs,
        profiles=profiles,
        target=",".join(tools.targets),
    )
    named = {"graph": source.role, "path": path, "precision": source.precision, "weight_bytes": weights}
    return engine, {**named, **facts, "profiles": request["profiles"]}


def child(request: dict[str, Any], failure: str) -> dict[str, Any]:
    """What the process that builds answers; raises as `core.child.ask`."""
    return ask(f"{__package__}.tensorrt_build", request, failure)
