"""The passes of a batch, edited one after the other: each is in the ledger before the next one begins."""

import argparse
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.adapters import parse_embeddings, parse_loras
from ...core.errors import MRCError, reason
from ...core.files import file_digest, naming, sync
from ..engine import Engine
from ..finishing import AS_IT_IS, Finishing, open_finishing
from ..flags import edit_options, open_engine
from ..images import load_image
from ..metadata import Metadata, read_metadata
from ..outputs import Output, file_content
from ..parameters import describe_edits, text_of
from ..provenance import source_format
from ..request import EditOptions
from ..safety import UnsafeEdit
from ..sources import Source
from .item import Item, seed_of
from .place import PARTIAL, Entry, Place, add_to, new_ledger, settle


@dataclass(frozen=True)
class Editor:
    """An open model, and what all edits of a batch share.

    Attributes:
        record: of the parameters, for PNG (`engine.parameters`).
        ledger: of this process.
    """

    engine: Engine
    place: Place
    options: EditOptions
    seed: int
    quality: int | None
    record: dict[str, Any]
    ledger: Path
    finishing: Finishing = AS_IT_IS


@dataclass(frozen=True)
class Loaded:
    """An item whose image is read."""

    item: Item
    source: Source
    image: Image.Image
    metadata: Metadata


def open_editor(args: argparse.Namespace, place: Place) -> Editor:
    """Open the model.

    Raises:
        MRCError: it cannot be opened, or is not the one that the batch was begun with.
    """
    finishing = open_finishing(args)
    options, engine = edit_options(args), open_engine(args)
    record = describe_edits(args, engine, options)
    adapters = [str(file) for file in (*parse_loras(args.lora), *parse_embeddings(args.embedding).values())]
    made = {"model_digest": record["model_digest"], "adapters": {file: file_digest(Path(file)) for file in adapters}}
    settle(place.work / "model.json", made | record["settings"])
    return Editor(engine, place, options, args.seed, args.quality, record, new_ledger(place.work), finishing)


def edit_passes(editor: Editor, passes: Iterable[Sequence[Item]]) -> Iterator[list[Entry]]:
    """The entries of each pass, when they are in the ledger. The images of the next pass are read meanwhile."""
    for loaded, failed in read_ahead(passes, editor.finishing.sign is not None):
        entries = [*failed, *(write(editor, *one) for one in edit_pass(editor, loaded))]
        add_to(editor.ledger, entries)
        yield entries


def read_ahead(passes: Iterable[Sequence[Item]], signs: bool) -> Iterator[tuple[list[Loaded], list[Entry]]]:
    following: Future | None = None
    with ThreadPoolExecutor(1, "mrc-image") as reader:
        for some in passes:
            current, following = following, reader.submit(read_pass, some, signs)
            if current is not None:
                yield current.result()
        if following is not None:
            yield following.result()


def read_pass(some: Sequence[Item], signs: bool) -> tuple[list[Loaded], list[Entry]]:
    """The images of a pass, and the entries of those that cannot be read, or named by what signs the edits."""
    loaded, failed = [], []
    for item in some:
        try:
            source = Source(item.name, item.read())
            if signs:
                source_format(source.open(), item.name)
            loaded.append(Loaded(item, source, load_image(source.image), read_metadata(source)))
        except (MRCError, OSError, MemoryError) as error:
            failed.append(failure(item, error))
    return loaded, failed


def edit_pass(editor: Editor, some: Sequence[Loaded]) -> list[tuple[Loaded, Image.Image | MRCError, float]]:
    """The edits of a pass, each with the seconds of the pass; one that fails is edited one by one."""
    if not some:
        return []
    options: EditOptions = {**editor.options, "seed": [seed_of(editor.seed, each.item.key) for each in some]}
    try:
        result = editor.engine.edit([each.image for each in some], [each.item.instruction for each in some], **options)
    except Exception as error:  # a native library's own, too
        if len(some) == 1:
            return [(some[0], error if isinstance(error, MRCError) else MRCError(reason(error)), 0.0)]
        return [one for each in some for one in edit_pass(editor, [each])]
    seconds = round(sum(result.timings.values()), 3)
    return [(each, image, seconds) for each, image in zip(some, result.images, strict=True)]


def write(editor: Editor, loaded: Loaded, edit: Image.Image | MRCError, seconds: float) -> Entry:
    """Write an edit; returns its entry, or that of why there is none."""
    item, place = loaded.item, editor.place
    if isinstance(edit, MRCError):
        return failure(item, edit)
    path, seed = place.path(item), seed_of(editor.seed, item.key)
    output = Output(loaded.source, path, place.format)
    record = editor.record | {"instruction": item.instruction}
    text = text_of(record, loaded.source, seed, edit.size) if output.format == "PNG" else None
    try:
        content = file_content(edit, output, loaded.metadata, editor.quality, text, editor.finishing)
    except MRCError as error:
        return failure(item, error)
    put(place.work / f"{PARTIAL}{editor.ledger.stem}", path, content)
    digest = hashlib.sha256(content).hexdigest()
    entry = {"key": item.key, "output": path.relative_to(place.folder).as_posix(), "seed": seed}
    return entry | {"size": edit.size, "seconds": seconds, "source": loaded.source.digest(), "sha256": digest}


def failure(item: Item, error: BaseException) -> Entry:
    entry = {"key": item.key, "image": item.name, "error": str(error) or reason(error)}
    return entry | {"withheld": True} if isinstance(error, UnsafeEdit) else entry


def put(partial: Path, target: Path, content: bytes) -> None:
    """Write a file whole or not at all. `core.files.write_file` would list the folder, which may be long."""
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        sync(target.parent)
