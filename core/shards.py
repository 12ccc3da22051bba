"""Uncompressed tar files of samples, as WebDataset lays them out: members with one name and several endings."""

import itertools
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TypeVar

from .errors import MRCError
from .paths import LARGEST

EXTENSIONS = ("jpg", "jpeg", "png", "webp")  # of images
BLOCK = 512  # bytes of a tar header
TWICE = "its {} is there twice; give every sample a key of its own"
Part = tuple[int, int] | str  # of a sample: offset and size, or why it cannot be read

Content = TypeVar("Content")


def read_members(file: Path) -> dict[str, dict[str, Part]]:
    """The parts of every sample by key and extension.

    Raises:
        MRCError: no uncompressed tar file.
    """
    members: dict[str, dict[str, Part]] = {}
    if not file.is_file():
        raise MRCError(f"{file} is no file")
    fault, last = "", -1
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.offset <= last:  # a negative size leads back, for ever
                    raise tarfile.TarError("its members lead in a circle")
                last = member.offset
                add_member(members, member)
            end = tar.offset
        with file.open("rb") as opened:
            opened.seek(end)
            if opened.read(BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
                fault = f"damaged at byte {end:,}"
    except Exception as error:  # tarfile raises many types for damaged headers
        if not members:
            raise MRCError(f"{file} cannot be read as an uncompressed tar file ({error})") from None
        fault = f"damaged ({error})"
    members = dict(sorted(members.items()))
    if fault:
        members["(end)"] = {"json": f"{file.name} is {fault}, what follows is lost; fetch it again"}
    return members


def add_member(members: dict[str, dict[str, Part]], member: tarfile.TarInfo) -> None:
    """Note where the data of a tar member lie."""
    key, extension = key_and_extension(member)
    if not member.isfile():
        return
    parts = members.setdefault(key, {})
    if member.issparse():
        parts[extension] = f"its {extension} is stored as a sparse file; pack it again without"
    elif extension in parts:
        parts[extension] = TWICE.format(extension)
    else:
        parts[extension] = (member.offset_data, member.size)


def key_and_extension(member: tarfile.TarInfo) -> tuple[str, str]:
    """a/b.source.jpg → a/b, source.jpg."""
    folder, _, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}".removeprefix("./").removeprefix("/"), extension


def tar_samples(opened: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes | str]]]:
    """Key and members of every sample of a tar file that is read from front to back; the members of a sample are
    neighbours. A member that cannot be read is the reason why.

    Raises:
        tarfile.TarError: it is no uncompressed tar file, or breaks off.
    """
    with tarfile.open(fileobj=opened, mode="r|") as tar:
        files = (member for member in tar if member.isfile())
        for key, members in itertools.groupby(files, lambda member: key_and_extension(member)[0]):
            parts: dict[str, bytes | str] = {}
            for member in members:
                _, extension = key_and_extension(member)
                if extension in parts:
                    parts[extension] = TWICE.format(extension)
                elif member.size > LARGEST:
                    parts[extension] = f"its {extension} has {member.size:,} bytes, more than {LARGEST:,}"
                elif content := tar.extractfile(member):
                    parts[extension] = content.read()
            yield key, parts
        assert tar.fileobj is not None
        rest = tar.fileobj.read(BLOCK)
        if rest.strip(b"\0") or tar.fileobj.tell() % BLOCK:  # tarfile takes a damaged header for the end
            raise tarfile.TarError("there are data behind its end")


def find_part(parts: Mapping[str, Content | str], names: list[str]) -> Content:
    """The first of these members.

    Raises:
        MRCError: none is there, or it cannot be read.
    """
    part = next((parts[name] for name in names if name in parts), None)
    if part is None:
        raise MRCError(f"it has no {names[0]}; its members are {sorted(parts)}")
    if isinstance(part, str):
        raise MRCError(part)
    return part


def read_part(file: Path, parts: dict[str, Part], names: list[str]) -> bytes:
    """The content of the first of these members.

    Raises:
        MRCError: none is there, or it cannot be read.
    """
    offset, size = find_part(parts, names)
    if not 0 <= size <= LARGEST or offset + size > file.stat().st_size:
        raise MRCError(f"its {names[0]} has {size:,} bytes, more than {LARGEST:,} or than the file has")
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(size)
