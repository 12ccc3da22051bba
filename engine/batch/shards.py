"""Tar shards in and out, as WebDataset lays them out: KEY.jpg, or KEY.source.jpg, with KEY.json or KEY.txt."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from ...core.columns import SHARDS
from ...core.errors import MRCError
from ...core.files import file_digest, parse_json, replaced_file
from ...core.shards import EXTENSIONS, Part, read_members, read_part
from ..arguments import check_texts
from .item import Item, broken, key_problem

IMAGES = [*(f"{SHARDS.source}.{extension}" for extension in EXTENSIONS), *EXTENSIONS]
TEXTS = (SHARDS.instruction, "instruction")  # fields of the JSON


def shard_items(file: Path) -> list[Item]:
    """The samples of a tar file. Their images are read when they are edited."""
    return [sample_item(file, key, parts) for key, parts in read_members(file).items()]


def sample_item(file: Path, key: str, parts: dict[str, Part]) -> Item:
    name = f"{file.name}:{key}"
    try:
        instruction = instruction_of(file, parts)
        if problem := key_problem(key):
            raise MRCError(problem)
    except MRCError as error:
        return broken(name, name, error, str(file))
    return Item(key, name, instruction, partial(read_part, file, parts, IMAGES), str(file))


def instruction_of(file: Path, parts: dict[str, Part]) -> str:
    """The instruction in the JSON of a sample, or in its text.

    Raises:
        MRCError: it has none.
    """
    if "json" not in parts and "txt" in parts:
        try:
            text: object = read_part(file, parts, ["txt"]).decode().strip()
        except UnicodeDecodeError as error:
            raise MRCError(f"its txt is not UTF-8 ({error})") from None
    else:
        record = parse_json(read_part(file, parts, ["json"]), file, "mend the sample")
        text = next((record[name] for name in TEXTS if name in record), None)
    if not isinstance(text, str):
        raise MRCError(f"its JSON has {text!r:.40} as {' or '.join(TEXTS)}; give a text")
    return check_texts(text, "the instruction")[0]


def write_shard(target: Path, samples: Iterable[tuple[Item, int, Path]]) -> str:
    """Write a tar file whole or not at all; the same samples give the same bytes.

    Args:
        samples: items with their seeds and the files of their edits.

    Returns:
        Its SHA-256.
    """
    with replaced_file(target) as partial_file:
        with tarfile.open(partial_file, "w") as tar:
            for item, seed, edited in samples:
                record: Mapping[str, object] = {SHARDS.instruction: item.instruction, "seed": seed}
                add(tar, f"{item.key}.{SHARDS.edited}{edited.suffix}", edited.read_bytes())
                add(tar, f"{item.key}.json", json.dumps(record, ensure_ascii=False).encode())
        return file_digest(partial_file)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
