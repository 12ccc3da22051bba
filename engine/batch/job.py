"""A batch from its first item to its report."""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ...core.console import VERSION
from ...core.errors import MRCError
from ...core.files import claim_folder, read_json, write_file
from ...core.locks import locked
from ..arguments import check_seeds
from ..flags import edit_options
from ..outputs import check_quality
from ..parameters import NOT_SETTINGS
from ..request import EditRequest, check_arguments
from .cluster import edit_on_ray, wait_for_workers
from .done import Done, is_packed, read_done
from .editing import edit_passes, open_editor
from .inputs import open_items
from .item import Item, digest_of
from .place import ERRORS, PARTIAL, WORK, Entry, Place, add_to, new_ledger, open_place, settle
from .shards import write_shard

RECORD = f"{WORK}/batch.json"
REMEDY = "remove the folder to begin anew"
FAILED = 1  # status of a run that has edited what can be edited, when that is not all


def run(args: argparse.Namespace) -> None:
    """Edit what is not edited yet.

    Raises:
        MRCError: what can be seen to be wrong before a model is loaded; a changed input or setting.
        SystemExit: with status `FAILED`, when items could not be edited.
    """
    check(args)
    items = open_items(args.batch[0], args.num_images)
    place = open_place(args.batch[1], items, args.format)
    check_quality([place.format], args.quality)
    with locked(place.folder, wait=False):
        claim_folder(place.folder, RECORD, "edits of a batch")
        place.work.mkdir(parents=True, exist_ok=True)
        wait_for_workers(place.work)
        for left in place.work.glob(f"{PARTIAL}*"):
            left.unlink()
        args.seed = begun_seed(place) if args.seed is None else args.seed
        settle(place.folder / RECORD, asked(args, items))
        done = read_done(place, items)
        before = len(done.edits)
        edit_all(args, items, place, done)
        report(args, items, place, done, before)


def check(args: argparse.Namespace) -> None:
    for option, number in (("--num-images", args.num_images), ("--batch-size", args.batch_size)):
        if number < 1:
            raise MRCError(f"{option} is {number}; give a whole number from 1")
    if args.workers is not None and (not args.ray or args.workers < 1):
        raise MRCError(f"--workers is {args.workers}; give a whole number from 1, and --ray")
    check_seeds(args.seed, 1)
    check_arguments(EditRequest(None, args.instruction, **edit_options(args)))


def begun_seed(place: Place) -> int:
    """The seed that the batch was begun with, or a random one.

    Raises:
        MRCError: its record has none.
    """
    path = place.folder / RECORD
    if not path.is_file():
        return check_seeds(None, 1)[0]
    if not isinstance(seed := read_json(path, REMEDY).get("seed"), int):
        raise MRCError(f"{path} has the seed {seed!r:.40}, not a whole number; {REMEDY}")
    return seed


def asked(args: argparse.Namespace, items: Sequence[Item]) -> dict[str, object]:
    """All that decides what the edits are, as far as it is known before the model is open."""
    own = {name: getattr(args, name) for name in ("seed", "format", "quality", "num_images", "batch_size")}
    own |= {"safety": args.safety, "provenance": bool(args.provenance)}
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    return {"version": VERSION} | own | {"items": len(items), "digest of the items": digest_of(items)} | settings


def edit_all(args: argparse.Namespace, items: Sequence[Item], place: Place, done: Done) -> None:
    """Edit what is not in `done`, and add it there."""
    passes = passes_of(items, args.batch_size, place, done)
    left = Counter(item.shard for some in passes for item in some)
    shards: dict[str, list[Item]] = {shard: [] for shard in place.shards}
    for item in items:
        if shards:
            shards[item.shard].append(item)
    ledger = new_ledger(place.work)
    for shard in shards:
        if not left[shard]:
            pack(place, shard, shards[shard], done, ledger)
    shard_of = {item.key: item.shard for some in passes for item in some}
    with tqdm(total=left.total(), desc="edits", unit="edit", disable=None if passes else True) as bar:
        for entries in run_passes(args, place, passes):
            done.add(entries)
            for entry in entries:
                tell(entry, args.json)
                shard = shard_of[entry["key"]]
                left[shard] -= 1
                if shards and not left[shard]:
                    pack(place, shard, shards[shard], done, ledger)
            bar.update(len(entries))


def passes_of(items: Sequence[Item], size: int, place: Place, done: Done) -> list[list[Item]]:
    """What is left of each pass. Which items go together depends on nothing that was done before."""
    by_shard: dict[str, list[Item]] = {}
    for item in items:
        if not item.problem:
            by_shard.setdefault(item.shard, []).append(item)
    whole = [some[i : i + size] for some in by_shard.values() for i in range(0, len(some), size)]
    left = ([item for item in some if is_left(place, item, done)] for some in whole)
    return [some for some in left if some]


def is_left(place: Place, item: Item, done: Done) -> bool:
    """Whether an item is to be edited. What failed is tried again, but for what a tar file lacks that is whole."""
    return not (item.key in done.edits or item.key in done.withheld or is_packed(place, item, done))


def run_passes(args: argparse.Namespace, place: Place, passes: list[list[Item]]) -> Iterator[list[Entry]]:
    if not passes:
        return iter(())
    return edit_on_ray(args, place, passes) if args.ray else edit_passes(open_editor(args, place), passes)


def pack(place: Place, shard: str, items: Sequence[Item], done: Done, ledger: Path) -> None:
    """Write the tar file of a shard whose items are all edited, unless it is there."""
    target, parts = place.shards[shard], place.parts(shard)
    if target.name not in done.shards:
        edited = [item for item in items if not item.problem and item.key in done.edits]
        samples = ((item, done.edits[item.key]["seed"], place.path(item)) for item in edited)
        entry = {"shard": target.name, "sha256": write_shard(target, samples)}
        add_to(ledger, [entry])
        done.add([entry])
    shutil.rmtree(parts, ignore_errors=True)


def tell(entry: Entry, as_json: bool) -> None:
    """A line for each edit where machines read, for what failed else."""
    if as_json:
        tqdm.write(json.dumps(entry), file=sys.stdout)
    elif "error" in entry:
        tqdm.write(f"{entry['key']}: {entry['error']}", file=sys.stderr)


def report(args: argparse.Namespace, items: Sequence[Item], place: Place, done: Done, before: int) -> None:
    """Write what could not be edited, and say how many."""
    errors = []
    for item in items:
        error = item.problem or ("" if item.key in done.edits else done.failed[item.key])
        if error:
            errors.append({"key": item.key, "image": item.name, "error": error})
    path = place.folder / ERRORS
    if errors:
        lines = "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in errors)
        write_file(path, lines.encode(errors="backslashreplace"))  # what is no UTF-8 in a name becomes JSON's \udc…
    else:
        path.unlink(missing_ok=True)
    counts = {"items": len(items), "edited": len(done.edits) - before, "edited before": before, "failed": len(errors)}
    if args.json:
        print(json.dumps(counts | {"errors": str(path) if errors else None}))
    else:
        told = ", ".join(f"{name}: {number}" for name, number in counts.items())
        print(f"{place.folder}: {told}" + (f"; {path} says why" if errors else ""))
    if errors:
        raise SystemExit(FAILED)
