"""Write triplets in the formats that the readers read."""

import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypedDict

from PIL import Image
from tqdm import tqdm

from ...core.errors import MRCError
from ...core.files import replace_folder
from ...core.reward import PERSPECTIVES
from .triplet import Scores, Triplet

SHARD = 1000  # samples a tar file
ROWS = 32  # of a parquet file, in memory at a time

# A perspective's score and failure text in the released RewardEdit JSON
RewardEntry = TypedDict("RewardEntry", {"Score": float, "Negative Prompt": str})


def write_triplets(triplets: Iterable[Triplet], folder: str | Path, form: str, total: int | None = None) -> None:
    """Write a new `folder` whole or not at all.

    Args:
        form: one of `FORMATS`; "folders" are JPEG, the others PNG.
        total: number of triplets, for the progress bar.
    """
    if form not in FORMATS:
        raise MRCError(f"there is no format {form!r}; choose one of {', '.join(FORMATS)}")
    if Path(folder).exists():
        raise MRCError(f"{folder} exists already; give a folder that does not")
    with replace_folder(Path(folder)) as out:
        FORMATS[form](iter(tqdm(triplets, total=total, desc=f"write {form}", unit="triplet", disable=None)), out)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, form, quality=95)
    return buffer.getvalue()


def write_folders(triplets: Iterator[Triplet], out: Path) -> None:
    """InstructPix2Pix folders, JPEG, with `RewardEdit.json` where there are rewards."""
    rewards = {}
    for number, triplet in enumerate(triplets):
        name = f"{number:07d}"
        (out / name).mkdir()
        (out / name / "0_0.jpg").write_bytes(encoded(triplet.source, "JPEG"))
        (out / name / "0_1.jpg").write_bytes(encoded(triplet.edited, "JPEG"))
        (out / name / "prompt.json").write_text(json.dumps({"edit": triplet.instruction}))
        if triplet.scores is not None and triplet.reward_text is not None:
            rewards[name] = reward_entry(triplet.id, triplet.scores, triplet.reward_text)
    if rewards:
        (out / "RewardEdit.json").write_text(json.dumps(rewards))


def reward_entry(name: str, scores: Scores, text: str) -> list[RewardEntry]:
    """A triplet's reward in the released format, one entry a perspective."""
    texts = text.split("; ")
    if len(texts) != len(PERSPECTIVES):
        raise MRCError(f"sample {name}: the reward text {text!r} is not three texts")
    numbers = [int(score) if score == int(score) else score for score in scores]
    return [{"Score": s, "Negative Prompt": t} for s, t in zip(numbers, texts, strict=True)]


def write_parquet(triplets: Iterator[Triplet], out: Path) -> None:
    """`triplets.parquet`."""
    write_table(triplets, out / "triplets.parquet")


def write_table(triplets: Iterator[Triplet], file: Path) -> None:
    """A parquet file; all triplets have rewards or none has."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = [("original_image", image), ("edit_prompt", pyarrow.string()), ("edited_image", image)]
    rewards = [("reward_scores", pyarrow.list_(pyarrow.float64())), ("reward_text", pyarrow.string())]
    first = next(triplets)
    schema = pyarrow.schema(columns if first.scores is None else columns + rewards)
    rest = itertools.chain([first], triplets)
    with ParquetWriter(file, schema) as writer:
        while rows := [table_row(triplet) for triplet in itertools.islice(rest, ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def table_row(triplet: Triplet) -> dict[str, object]:
    """A row of the parquet file."""
    return {
        "original_image": {"bytes": encoded(triplet.source), "path": None},
        "edit_prompt": triplet.instruction,
        "edited_image": {"bytes": encoded(triplet.edited), "path": None},
        "reward_scores": triplet.scores,
        "reward_text": triplet.reward_text,
    }


def write_shards(triplets: Iterator[Triplet], out: Path) -> None:
    """WebDataset tar files of `SHARD` samples."""
    tar = None
    for number, triplet in enumerate(triplets):
        if number % SHARD == 0:
            if tar:
                tar.close()
            tar = tarfile.open(out / f"{number // SHARD:05d}.tar", "w")  # noqa: SIM115
        record: dict[str, object] = {"edit": triplet.instruction}
        if triplet.scores is not None:
            record |= {"scores": list(triplet.scores), "reward_text": triplet.reward_text}
        for part, data in (
            ("source.png", encoded(triplet.source)),
            ("edited.png", encoded(triplet.edited)),
            ("json", json.dumps(record).encode()),
        ):
            info = tarfile.TarInfo(f"{number:07d}.{part}")
            info.size = len(data)
            assert tar is not None
            tar.addfile(info, io.BytesIO(data))
    if tar:
        tar.close()


FORMATS: dict[str, Callable[[Iterator[Triplet], Path], None]] = {
    "folders": write_folders,
    "parquet": write_parquet,
    "shards": write_shards,
}
