"""Opens a checkpoint in any layout: a folder, a folder of the hub's cache, a single file; with another VAE."""

from dataclasses import replace
from pathlib import Path

from ..core.errors import MRCError
from ..core.paths import check_links, snapshot
from .configs import read_config
from .single_file import file_source, read_vae_file
from .source import Source, files_below, folder_source
from .weights import WEIGHTS, read_folder, variant_or_plain


def open_source(
    model: str | Path, variant: str | None = None, vae: str | Path | None = None, base: str | Path | None = None
) -> Source:
    """The parts of the checkpoint `model`; the arguments are those of `checkpoint.load_checkpoint`.

    Raises:
        MRCError: no checkpoint of the family, or an argument that its layout does not take.
    """
    path = snapshot(Path(model))
    if not path.is_file():
        if base is not None:
            raise MRCError(f"base is {str(base)!r} and {path} is a folder; only a single file needs one, leave it out")
        source = folder_source(path, variant)
    elif variant is not None:
        raise MRCError(f"variant is {variant!r} and {path} is a single file, which has none; leave it out")
    else:
        source = file_source(path, None if base is None else snapshot(Path(base)))
    return source if vae is None else with_vae(source, Path(vae), variant)


def with_vae(source: Source, path: Path, variant: str | None) -> Source:
    """`source` with the VAE at `path`: its own folder, a model's that has `vae/`, or a single file.

    A single file has no settings: those of the VAE that it replaces count.
    """
    vae = vae_file(source, path) if path.is_file() else vae_folder(source, path, variant)

    def of(part: str) -> Source:
        return vae if part == "vae" else source

    return replace(
        source,
        config=lambda part: of(part).config(part),
        weights=lambda part, dtype: of(part).weights(part, dtype),
        place=lambda part: of(part).place(part),
        files=lambda: source.files() + vae.files(),
    )


def vae_file(source: Source, path: Path) -> Source:
    return replace(
        source,
        weights=lambda _, dtype: read_vae_file(path, source.config("vae"), dtype),
        place=lambda _: path,
        files=lambda: [path],
    )


def vae_folder(source: Source, path: Path, variant: str | None) -> Source:
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise MRCError(f"vae is {str(path)!r}, which is no VAE; give its folder, with config.json, or its .safetensors")
    check_links(folder)
    name = WEIGHTS["vae"]
    own = variant_or_plain(folder, name, variant)
    return replace(
        source,
        config=lambda _: read_config(folder / "config.json"),
        weights=lambda _, dtype: read_folder(folder, name, dtype, own),
        place=lambda _: folder,
        files=lambda: files_below(folder),
    )
