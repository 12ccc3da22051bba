"""The images that `mrc-edit` is given: files, patterns of them, and standard input."""

import hashlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import BinaryIO

from ..core.errors import MRCError
from .framing import make_frame
from .images import check_pixels, decoding, load_image, opened

STDIN = "-"


@dataclass(frozen=True)
class Source:
    """One image: its name as it was given, or that matched, and where its bytes are."""

    name: str
    image: Path | bytes

    @property
    def stem(self) -> str:
        return "stdin" if self.name == STDIN else Path(self.name).stem

    @property
    def folder(self) -> Path:
        return Path(self.name).parent

    @property
    def title(self) -> str:
        """Its name in messages."""
        return "standard input" if self.name == STDIN else self.name

    def content(self) -> bytes:
        return self.image if isinstance(self.image, bytes) else self.image.read_bytes()

    def digest(self) -> str:
        """SHA-256 of its bytes."""
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # any binary file

    def open(self) -> BinaryIO:
        return io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image.open("rb")


def find_sources(words: Sequence[str]) -> list[Source]:
    """The images of the command line. A word that is no file is a pattern if it has one of `*?[`.

    Raises:
        MRCError: a pattern that no file matches, or standard input twice.
    """
    if words.count(STDIN) > 1:
        raise MRCError("- is standard input, which holds one image; give it once")
    sources: list[Source] = []
    for word in words:
        if word == STDIN:
            sources.append(Source(STDIN, sys.stdin.buffer.read()))
        elif any(character in word for character in "*?[") and not Path(word).exists():
            matching = glob(word, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute patterns
            found = sorted(path for path in matching if Path(path).is_file())
            if not found:
                raise MRCError(f"no file matches {word}; check its folder and its spelling")
            sources += [Source(path, Path(path)) for path in found]
        else:
            sources.append(Source(word, Path(word)))
    return sources


def check_source(source: Source, resolution: int | None) -> None:
    """Refuse what can be seen from the header of a file: no image, or one that is too large.

    Raises:
        MRCError: such a file.
    """
    if isinstance(source.image, Path) and not source.image.is_file():
        load_image(source.image)  # says what it is instead
    with decoding(source.title), source.open() as file, opened(file, source.title) as image:
        check_pixels(*image.size, source.title)
        if resolution == 0:
            make_frame(*image.size, 0, 1)  # refuses what is too large for any model
