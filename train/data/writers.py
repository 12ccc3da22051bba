"""Write triplets in each format that the readers read."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ...errors import MRCError
from ...files import replace_folder
from ...reward import PERSPECTIVES
from .triplet import Triplet

FORMATS = ("folders", "parquet", "shards")
SHARD = 1000  # samples a tar file


def write_triplets(triplets: Iterable[Triplet], folder: str | Path, form: str, total: int | None = None) -> None:
    """Write a new `folder` whole or not at all.

    Args:
        form: "folders" (JPEG, with `RewardEdit.json` where there are rewards), "parquet" or "shards" (PNG).
        total: number of triplets, for the progress bar.
    """
    if form not in FORMATS:
        raise MRCError(f"there is no format {form!r}; choose one of {', '.join(FORMATS)}")
    if Path(folder).exists():
        raise MRCError(f"{folder} exists already; give a folder that does not")
    write = {"folders": write_folders, "parquet": write_parquet, "shards": write_shards}[form]
    with replace_folder(Path(folder)) as out:
        write(iter(tqdm(triplets, total=total, desc=f"write {form}", unit="triplet", disable=None)), out)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=95)
    return buffer.getvalue()


def write_folders(triplets: Iterator[Triplet], out: Path) -> None:
    rewards = {}
    for number, triplet in enumerate(triplets):
        name = f"{number:07d}"
        (out / name).mkdir()
        (out / name / "0_0.jpg").write_bytes(encoded(triplet.source, "JPEG"))
        (out / name / "0_1.jpg").write_bytes(encoded(triplet.edited, "JPEG"))
        (out / name / "prompt.json").write_text(json.dumps({"edit": triplet.instruction}))
        if triplet.scores is not None and triplet.reward_text is not None:
            texts = triplet.reward_text.split("; ")
            if len(texts) != len(PERSPECTIVES):
                raise MRCError(f"sample {triplet.id}: the reward text {triplet.reward_text!r} is not three texts")
            scores = [int(score) if score == int(score) else score for score in triplet.scores]
            rewards[name] = [{"Score": s, "Negative Prompt": t} for s, t in zip(scores, texts, strict=True)]
    if rewards:
        (out / "RewardEdit.json").write_text(json.dumps(rewards))


def write_parquet(triplets: Iterator[Triplet], out: Path) -> None:
    import datasets

    rows = [
        {
            "original_image": {"bytes": encoded(triplet.source), "path": None},
            "edit_prompt": triplet.instruction,
            "edited_image": {"bytes": encoded(triplet.edited), "path": None},
        }
        | ({} if triplet.scores is None else {"reward_scores": triplet.scores, "reward_text": triplet.reward_text})
        for triplet in triplets
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(out / "triplets.parquet"))


def write_shards(triplets: Iterator[Triplet], out: Path) -> None:
    tar = None
    for number, triplet in enumerate(triplets):
        if number % SHARD == 0:
            if tar:
                tar.close()
            tar = tarfile.open(out / f"{number // SHARD:05d}.tar", "w")  # noqa: SIM115
        record: dict[str, Any] = {"edit": triplet.instruction}
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
