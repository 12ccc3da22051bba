"""A batch as a Ray Data job: each worker opens a model and edits whole passes, as a run on one machine does.

Model, input and OUT must be on every machine under the same path. Workers write edits and ledgers there themselves.
"""

import argparse
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ...core.cluster import connected, prepare_ray
from ...core.errors import MRCError
from ...core.locks import own
from .done import Done
from .editing import Editor, edit_passes, open_editor
from .item import Item
from .place import Entry, Place, read_ledgers

WORKER = "worker-"  # how the files begin that workers keep locked as long as they live
MOST = 64  # passes that a worker takes at a time


class Worker:
    """Edits rows of passes; a row comes back as its entries in JSON, or as why the whole job must stop."""

    def __init__(self, args: argparse.Namespace, place: Place, folder: Path) -> None:
        os.chdir(folder)  # of the command: paths in its arguments are relative to it
        self.lock = own(place.work / f"{WORKER}{secrets.token_hex(8)}", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.args, self.place = args, place

    @cached_property
    def editor(self) -> Editor:
        return open_editor(self.args, self.place)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        try:
            return {"entries": [json.dumps(entries) for some in batch["items"] for entries in self.edit(list(some))]}
        except (MRCError, OSError) as error:
            return {"entries": [json.dumps(str(error))]}

    def edit(self, some: list[Item]) -> Iterator[list[Entry]]:
        """The entries of a pass. One that a worker which died has left done is not edited again."""
        there = {item.key for item in some if self.place.path(item).exists()}
        if there:
            done = Done()
            done.add(read_ledgers(self.place.work))
            there &= done.edits.keys()
            yield [done.edits[key] for key in sorted(there)]
            some = [item for item in some if item.key not in there]
        yield from edit_passes(self.editor, [some] if some else [])


def wait_for_workers(work: Path) -> None:
    """Wait for the workers of a job that was killed, which outlive it a little: they must not edit beside new ones."""
    for path in work.glob(f"{WORKER}*"):
        while (descriptor := own(path, os.O_RDWR)) is None:
            time.sleep(0.1)
        path.unlink()
        os.close(descriptor)


def edit_on_ray(args: argparse.Namespace, place: Place, passes: list[list[Item]]) -> Iterator[list[Entry]]:
    """The entries of all passes, in any order, on the cluster of RAY_ADDRESS, or on a new one of this machine.

    Raises:
        MRCError: ray is missing or does not start, or what a worker raises.
    """
    prepare_ray()
    import ray

    with connected():
        cards = int(ray.cluster_resources().get("GPU", 0))
        workers = min(args.workers or max(cards, 1), len(passes))
        size = max(1, min(MOST, len(passes) // (4 * workers)))
        rows = ray.data.from_items([{"items": some} for some in passes], override_num_blocks=-(-len(passes) // size))
        edited = rows.map_batches(
            Worker,
            fn_constructor_args=(args, place, Path.cwd()),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=min(1, cards / workers) if cards else None,
            num_cpus=args.threads or 1,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        for row in edited.iter_rows():
            entries = json.loads(row["entries"])
            if isinstance(entries, str):
                raise MRCError(entries)
            yield entries
