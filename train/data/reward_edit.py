"""InstructPix2Pix folders, with or without the released RewardEdit JSON.

    ROOT/<triplet folder>/{seed}_0.jpg  {seed}_1.jpg  prompt.json   ("edit": a text, or a list whose first is used)
    {"<triplet folder>": [{"Score": n, "Negative Prompt": text} × 3]}   following, preserving, quality

Without the JSON every seed of a folder is a triplet; with it only the lowest seed, which is the one scored.
"""

import os
import re
import reprlib
from pathlib import Path

from ...core.errors import MRCError
from ...core.files import read_json
from ...core.paths import file_inside, read_inside
from .triplet import LONGEST_RECORD, Triplet, make_triplet, named, read_record

PICTURE = re.compile(r"(\d+)_([01])\.(jpg|jpeg|png|webp)")


class RewardEdit:
    """See `Triplets`."""

    def __init__(self, root: Path, rewards: Path | None = None) -> None:
        self.root = root.resolve()
        self.rewards = None if rewards is None else read_rewards(rewards)
        if self.rewards is not None:
            self.samples = [(name, "") for name in sorted(self.rewards)]
            # os.path, since Path.is_dir raises for names that are too long
            if not any(os.path.isdir(self.root / name) for name, _ in self.samples):  # noqa: PTH112
                raise MRCError(f"none of the {len(self.samples)} folders that {rewards} names is in {root}")
        else:
            folders = sorted(path.parent for path in self.root.glob("*/prompt.json"))
            self.samples = [(folder.name, seed) for folder in folders for seed in seeds(folder)]
        if not self.samples:
            raise MRCError(f"{root} holds no triplet; expected folders with prompt.json, N_0.jpg and N_1.jpg")

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return "/".join(filter(None, self.samples[index]))[:200]

    @named
    def __getitem__(self, index: int) -> Triplet:
        name, seed = self.samples[index]
        record = read_record(read_inside(self.root, f"{name}/prompt.json", LONGEST_RECORD))
        complete = seeds(self.root / name)
        if not complete:
            raise MRCError("it holds no pair N_0.jpg, N_1.jpg")
        seed = seed or complete[0]
        source, edited = (file_inside(self.root, f"{name}/{picture_name(self.root / name, seed, r)}") for r in "01")
        scores, text = (None, None) if self.rewards is None else reward(name, self.rewards[name])
        return make_triplet(f"{name}/{seed}", source, edited, instruction(record), scores, text)


def seeds(folder: Path) -> list[str]:
    """Seeds that have both pictures, lowest first."""
    roles: dict[str, set[str]] = {}
    for path in folder.glob("*_[01].*"):
        if match := PICTURE.fullmatch(path.name):
            roles.setdefault(match[1], set()).add(match[2])
    return sorted((seed for seed, both in roles.items() if len(both) == 2), key=int)


def picture_name(folder: Path, seed: str, role: str) -> str:
    return min(p.name for p in folder.glob(f"{seed}_{role}.*") if PICTURE.fullmatch(p.name))


def instruction(record: dict) -> object:
    """Of a folder's prompt.json, not yet checked."""
    if "edit" not in record:
        raise MRCError("its prompt.json has no 'edit'; mend it or remove the folder")
    edit = record["edit"]
    return edit[0] if isinstance(edit, list) and edit else edit


def read_rewards(path: Path) -> dict:
    """RewardEdit JSON; its entries are not yet checked."""
    rewards = read_json(path, "give a RewardEdit JSON, an object with one entry a triplet folder")
    if not rewards:
        raise MRCError(f"{path} holds no rewards; expected an object with one entry a triplet folder")
    return rewards


def reward(name: str, entry: list[dict]) -> tuple[list[object], str]:
    """Scores, not yet checked, and the joined text of one entry.

    Raises:
        MRCError: an entry of another form.
    """
    try:
        scores = [part["Score"] for part in entry]
        texts = [part["Negative Prompt"] for part in entry]
        return scores, "; ".join(text.strip() or "None" for text in texts)
    except (KeyError, TypeError, AttributeError) as error:
        raise MRCError(
            f"sample {name}: its reward is {reprlib.repr(entry)} ({error!r}); expected three of "
            '{"Score": n, "Negative Prompt": text}'
        ) from None
