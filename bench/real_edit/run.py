"""A run: every item edited, judged and measured, in a folder from which a stopped run goes on.

    run.json        model, data and settings; a run with others is refused
    sources/        the images at the size at which they were edited
    edits/          one PNG an item
    replies/        what the judge replied (judge/cache.py)
    results.json    judgement and proxies of every item, and the tables
    index.html      the gallery

An edit depends on its own item alone, so a killed run computes only what is missing and ends the same.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ...core.errors import MRCError
from ...core.files import claim_folder, file_digest, read_json, write_json
from ...core.schema import JsonObject
from ...engine import Engine
from ...engine.framing import framed, make_frame
from ...engine.images import load_image
from ...engine.manifest import NAME as MANIFEST
from ...engine.models import model_folder
from ...engine.outputs import save
from ...engine.request import naming
from ...judge import Judge, Reward
from ...judge.batch import judge_all
from ...judge.spending import Spending
from .gallery import Card, write_gallery
from .items import Item, digest, read_items
from .proxies import proxy_metrics
from .report import summary, tables

RESULTS = "results.json"
OF_AN_ITEM = ("image", "instruction", "")  # arguments whose errors concern one item; others concern the whole run
RESTORE = "restore it, or give a new --out"


def edit_items(data: Path, model: str, out: Path, settings: JsonObject) -> tuple[list[Item], list[str]]:
    """Edit what `out` does not yet have of the items of `data`.

    Args:
        settings: arguments of `Engine.edit`, the same for all items.

    Returns:
        The items that have an edit, and a line for each that is left out, because it cannot be read or edited.

    Raises:
        MRCError: `out` belongs to another run, no item can be used, the model or a setting cannot.
    """
    items, left_out = read_items(data)
    claim(out, {"model": str(model), "digest": model_digest(model), "data": digest(items), "settings": settings})
    missing = [item for item in items if not edit_path(out, item).is_file()]
    engine = Engine.from_pretrained(model) if missing else None
    for item in tqdm(missing, desc="edit", unit="edit", disable=None):
        assert engine is not None
        try:
            edit_item(engine, item, out, settings)
        except MRCError as error:
            if error.argument not in OF_AN_ITEM:
                raise
            left_out.append(f"{item.name}: {error}")
    edited = [item for item in items if edit_path(out, item).is_file()]
    if not edited:
        raise MRCError(f"no item of {data} can be edited: {left_out[0]}")
    return edited, left_out


def edit_item(engine: Engine, item: Item, out: Path, settings: JsonObject) -> None:
    geometry = engine.backend.geometry
    with naming("image"):
        image = load_image(item.image)
        source = framed(image, make_frame(*image.size, geometry.resolution, geometry.multiple))
    result = engine.edit(source, item.instruction, seed=item.seed, resolution=0, **settings)
    if not source_path(out, item).is_file():
        save(source, source_path(out, item))
    save(result.images[0], edit_path(out, item))


def judge_items(judge: Judge, items: Sequence[Item], out: Path, concurrency: int, spending: Spending) -> list[Reward]:
    def score(item: Item) -> Reward:
        return judge.score(*pictures(out, item), item.instruction)

    return list(judge_all(score, items, concurrency, spending))


def write_results(
    items: Sequence[Item],
    out: Path,
    rewards: Sequence[Reward] | None = None,
    judged_by: dict | None = None,
    left_out: Sequence[str] = (),
) -> dict:
    """Measure the edits, and write results.json and the gallery; returns the content of results.json.

    Args:
        left_out: a line for each item of the data that is not among `items`.
        rewards: one an item; None without a judge.
        judged_by: description of the judge for the report.
    """
    each: Sequence[Reward | None] = rewards if rewards is not None else [None] * len(items)
    pairs = zip(tqdm(items, desc="proxies", disable=None), each, strict=True)
    records = [record(item, reward, out) for item, reward in pairs]
    run = read_json(out / "run.json", RESTORE)
    results = {
        "run": run,
        "judge": judged_by,
        "tokens": sum(reward.tokens for reward in rewards or ()),
        "left_out": list(left_out),
        "items": records,
        "tables": summary(records),
    }
    write_json(out / RESULTS, results)
    cards = [Card.of(one, [("edit", one["edit"], one["reward"])]) for one in records]
    write_gallery(out, f"Real-Edit, {run.get('model')}", tables(results), cards)
    return results


def model_digest(model: str) -> str:
    """SHA-256 of an export's manifest, which has the digests of all its files, or of a checkpoint's files."""
    folder = model_folder(model, "auto")
    if (folder / MANIFEST).is_file():
        return file_digest(folder / MANIFEST)
    from ...model.checkpoint import checkpoint_digest  # torch

    return checkpoint_digest(folder)


def claim(out: Path, asked: dict) -> None:
    """Make `out` the folder of this run, or check that it is.

    Raises:
        MRCError: it belongs to another run, or holds something else.
    """
    path = out / "run.json"
    if path.is_file():
        earlier = read_json(path, RESTORE)
        for key, value in asked.items():
            if key != "model" and earlier.get(key) != value:
                raise MRCError(f"{out} holds a run with {key} {earlier.get(key)}, not {value}; give a new folder")
    else:
        claim_folder(out, path.name, "a run")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
    for folder in ("sources", "edits"):
        (out / folder).mkdir(exist_ok=True)


def record(item: Item, reward: Reward | None, out: Path) -> dict:
    judgement = asdict(reward) if reward else {}
    return {
        "name": item.name,
        "image": item.image.name,
        "number": item.number,
        "type": item.type,
        "instruction": item.instruction,
        "seed": item.seed,
        "source": source_path(out, item).relative_to(out).as_posix(),
        "edit": edit_path(out, item).relative_to(out).as_posix(),
        "reward": {key: judgement[key] for key in ("scores", "verdicts", "texts", "failures")} if reward else None,
        "proxies": proxy_metrics(*pictures(out, item), item.type),
    }


def pictures(out: Path, item: Item) -> tuple[Image.Image, Image.Image]:
    return load_image(source_path(out, item)), load_image(edit_path(out, item))


def source_path(out: Path, item: Item) -> Path:
    return out / "sources" / f"{item.image.stem}.png"


def edit_path(out: Path, item: Item) -> Path:
    return out / "edits" / f"{item.name}.png"
