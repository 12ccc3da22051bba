"""Do the graphs of an export fit its manifest and each other? Told when it is opened, without a runtime."""

from pathlib import Path

from ..core.errors import MRCError
from .graphs import DYNAMIC, Dims, shapes
from .manifest import NAME, REMEDY, Artifact, Geometry
from .onnx_graph import Shape, ports

Sizes = dict[str, tuple[int, str]]  # of the constant dimensions in `engine.graphs`: the number, and where it is from


def sizes_of(geometry: Geometry) -> Sizes:
    """Those that the manifest gives.

    Raises:
        MRCError: sides of images that cannot be whole latents.
    """
    if geometry.multiple % geometry.vae_scale:
        raise MRCError(
            f"{NAME} has the multiple {geometry.multiple} and the vae_scale {geometry.vae_scale}, which does not "
            f"divide it; {REMEDY}"
        )
    channels, length = geometry.latent_channels, geometry.text_length
    known = {"latent_channels": channels, "sample_channels": 2 * channels, "length": length}
    if geometry.feature_channels:
        known["channels"] = geometry.feature_channels
    return {name: (size, NAME) for name, size in known.items()}


def check_shapes(model: bytes, artifact: Artifact, geometry: Geometry, sizes: Sizes, path: Path) -> None:
    """Check the inputs and outputs of a graph.

    Args:
        geometry: of the manifest; says whether the model has rewards, a feature bias and embedded guidance.
        sizes: what is known; dimensions that this graph is the first to have are added.

    Raises:
        MRCError: other names, or dimensions that differ from those of the manifest or of another graph.
    """
    listed = artifact.inputs, artifact.outputs
    expected = shapes(artifact.role, geometry.rewards, bool(geometry.feature_channels), geometry.embeds_guidance)
    kind = ("with" if geometry.rewards else "without") + " rewards"
    kind += " and a feature bias" if geometry.feature_channels else ""
    kind += " that embeds guidance" if geometry.embeds_guidance else ""
    for found, wanted, of_manifest in zip(ports(model, path), expected, listed, strict=True):
        for names, where in ((wanted, f"a model {kind}"), (of_manifest, NAME)):
            if list(names) != list(found):
                raise MRCError(f"{path} has {', '.join(found)}, and {where} {', '.join(names)}; {REMEDY}")
        for name, dims in wanted.items():
            check_dimensions(f"{path}: {name}", found[name], dims, of_manifest[name][1:], sizes)


def check_dimensions(name: str, found: Shape, dims: Dims, of_manifest: list, sizes: Sizes) -> None:
    if not len(found) == len(dims) == len(of_manifest):
        raise MRCError(f"{name} has {len(found)} dimensions, and {NAME} {len(of_manifest)}; {REMEDY}")
    for number, dim, stated in zip(found, dims, of_manifest, strict=True):
        if number is None:  # open
            continue
        if dim in DYNAMIC:
            raise MRCError(f"{name} is fixed at {number} {dim}, which change from edit to edit; {REMEDY}")
        known, where = (dim, "any model") if isinstance(dim, int) else sizes.setdefault(dim, (number, name))
        for other, source in ((known, where), (stated, f"{NAME} for it")):
            if number != other:
                raise MRCError(f"{name} has {number} {dim}, {source} {other!r:.40}; {REMEDY}")
