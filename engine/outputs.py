"""Where the edits of `mrc-edit` go: names of files, what may be replaced, and writing."""

import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..core.errors import MRCError
from ..core.files import write_file
from .finishing import AS_IT_IS, Finishing, finish
from .metadata import Metadata, in_profile, is_ours
from .sources import STDIN, Source

FORMATS = ("png", "jpg", "webp")  # of outputs that have no name of their own
WITH_QUALITY = ("JPEG", "WEBP", "AVIF")


@dataclass(frozen=True)
class Output:
    """Where one edit goes."""

    source: Source
    path: Path | None  # None for standard output
    format: str  # Pillow's name


def name_outputs(sources: Sequence[Source], output: str | None, ending: str | None, count: int) -> list[list[Output]]:
    """Outputs of `count` edits of each source.

    Args:
        output: a file; a folder, which exists, ends with a slash or has no ending; `-`; or None for a file beside
            each source, or standard output for standard input.
        ending: of files that `output` does not name; None for png.

    Raises:
        MRCError: several edits to one place, an ending of no image format, a file in a folder that does not exist.
    """
    if output == "-" or (output is None and sources[0].name == STDIN and len(sources) == 1):
        if len(sources) * count > 1:
            raise MRCError(
                f"standard output takes one edit and these are {len(sources) * count}; give a folder with -o"
            )
        return [[Output(sources[0], None, image_format(Path(f"-.{ending or 'png'}")))]]
    file = None if output is None or is_folder(output) else Path(output)
    if file is not None and len(sources) > 1:
        raise MRCError(f"-o is the file {file} and there are {len(sources)} images; give a folder")
    if file is not None and ending is not None:
        raise MRCError(f"-o is the file {file}, whose ending says the format; leave out --format, or give a folder")
    if file is None and output is None and any(source.name == STDIN for source in sources):
        raise MRCError("standard input has no folder; name one with -o")
    if file is not None and not file.parent.is_dir():
        raise MRCError(f"{file} cannot be written; name a file in a folder that exists")
    outputs = []
    for source in sources:
        folder = source.folder if output is None else Path(output)
        first = file or folder / f"{source.stem}-edited.{ending or 'png'}"
        paths = [first] if count == 1 else [first.with_stem(f"{first.stem}-{i}") for i in range(1, count + 1)]
        outputs.append([Output(source, path, image_format(path)) for path in paths])
    return outputs


def is_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or Path(output).is_dir() or not Path(output).suffix


def image_format(path: Path) -> str:
    """Pillow's name of the format of a file's ending.

    Raises:
        MRCError: it is none that Pillow writes here.
    """
    try:
        name = Image.registered_extensions()[path.suffix.lower()]
        Image.new("RGB", (8, 8)).save(io.BytesIO(), name)
    except (KeyError, OSError, ValueError):
        raise MRCError(f"{path} has no ending of an image format to write; use .png, .jpg or .webp") from None
    return name


def check_outputs(outputs: Sequence[Output], overwrite: bool) -> None:
    """Refuse outputs that could not be written after the edit, before a model is loaded.

    Raises:
        MRCError: two edits with one name, a file that exists and that `mrc-edit` did not write or is to edit, a folder
            that cannot be written.
    """
    taken: dict[Path, Output] = {}
    sources = {Path(output.source.name).resolve() for output in outputs}
    for output in outputs:
        path = output.path
        if path is None:
            if sys.stdout.isatty():
                raise MRCError("standard output is a terminal, which shows no images; name a file with -o")
            continue
        if (earlier := taken.setdefault(path, output)) is not output:
            raise MRCError(f"{earlier.source.name} and {output.source.name} would both become {path}; edit them apart")
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise MRCError(f"{path} cannot be written; name a file in a folder that you may write to")
        if path.exists() and not overwrite and (path.resolve() in sources or not is_ours(path)):
            raise MRCError(f"{path} exists; name another file with -o, or give --overwrite")


def write(
    image: Image.Image, output: Output, metadata: Metadata, quality: int | None, text: PngInfo | None,
    finishing: Finishing = AS_IT_IS,
) -> None:  # fmt: skip
    """Write an edit to its place, as `file_content` makes it; a folder is made when its first edit is there."""
    content = file_content(image, output, metadata, quality, text, finishing)
    if output.path is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    output.path.parent.mkdir(parents=True, exist_ok=True)
    write_file(output.path, content)


def file_content(
    image: Image.Image, output: Output, metadata: Metadata, quality: int | None, text: PngInfo | None,
    finishing: Finishing = AS_IT_IS,
) -> bytes:  # fmt: skip
    """The file of an edit.

    Args:
        metadata: of its source, which it carries over.
        quality: 1 to 100 for formats that have one; None for Pillow's own.
        text: of a PNG.

    Raises:
        MRCError: the format or `finishing` refuses it.
    """
    in_colours, profile = in_profile(image, metadata)
    settings = {"exif": metadata.exif, "icc_profile": profile, "quality": quality, "pnginfo": text}
    given = {name: value for name, value in settings.items() if value is not None}
    encode = partial(encoded, in_colours, output.format, str(output.path or "the edit"), **given)
    return finish(image, output.format, encode, output.source.content, finishing)


def check_quality(formats: Iterable[str], quality: int | None) -> None:
    """Refuse a quality out of range, or for a format that has none.

    Args:
        formats: of the outputs, Pillow's names.

    Raises:
        MRCError: such a quality.
    """
    if quality is None:
        return
    if not 1 <= quality <= 100:
        raise MRCError(f"--quality is {quality}; give 1 to 100")
    if lossless := [name for name in formats if name not in WITH_QUALITY]:
        raise MRCError(f"--quality is for {', '.join(WITH_QUALITY)}, an output is {lossless[0]}; leave it out")


def save(image: Image.Image, path: Path) -> None:
    """Write an image whole or not at all, in the format of its ending."""
    write_file(path, encoded(image, image_format(path), str(path)))


def encoded(image: Image.Image, file_format: str, name: str, **settings: Any) -> bytes:
    """The content of an image file.

    Raises:
        MRCError: the format refuses it.
    """
    data = io.BytesIO()
    try:
        image.save(data, file_format, **settings)
    except (OSError, ValueError) as error:  # such as a picture too large for the format
        raise MRCError(f"{name} cannot be written ({error}); choose another format") from None
    return data.getvalue()
