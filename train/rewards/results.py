"""The files of a finished build.

    OUT/triplets.parquet  the triplets with their rewards; `mrc-train --data OUT` trains on it
    OUT/RewardEdit.json   the rewards alone in the released format, for `mrc-train --data DATA --rewards …`
    OUT/rewards.jsonl     one line a triplet: everything the judge replied, failures too
    OUT/report.json       totals, and the reasons of failures

A triplet without all three scores is in the last two alone: training needs complete rewards.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypedDict

from tqdm import tqdm

from ...core.errors import MRCError
from ...core.files import replaced_file, write_file
from ...core.reward import PERSPECTIVES
from ...judge import Reward
from ..data import Triplet, Triplets
from ..data.notes import say_broken
from ..data.reward_edit import RewardEdit
from ..data.writers import RewardEntry, reward_entry, write_table


class PerspectiveReport(TypedDict):
    """Of one perspective: number of scores, their mean, number of failures, and how often each reason."""

    scored: int
    mean: float | None
    failed: int
    failures: dict[str, int]


class Report(TypedDict):
    """Totals: `triplets` are `complete`, `incomplete` (a perspective without a score) and `unreadable` ones."""

    triplets: int
    complete: int
    incomplete: int
    unreadable: int
    tokens: int
    perspectives: dict[str, PerspectiveReport]


def write_results(out: Path, triplets: Triplets, judged: list[Reward | str]) -> Report:
    """Write the files above, each whole.

    Args:
        judged: for every triplet its reward, or the reason why it cannot be read.

    Raises:
        MRCError: no triplet has all three scores, so there is nothing to train on; the last two files are written.
    """
    lines: list[str] = []
    entries: dict[str, list[RewardEntry]] = {}

    def complete() -> Iterator[Triplet]:
        for index, reward in enumerate(tqdm(judged, desc="write", unit="triplet", disable=None)):
            if isinstance(reward, str):
                lines.append(json.dumps({"number": index, "unreadable": reward}))
                continue
            triplet = triplets[index]
            about = {"number": index, "id": triplet.id, "instruction": triplet.instruction}
            lines.append(json.dumps(about | asdict(reward)))
            following, preserving, quality = reward.scores
            if following is not None and preserving is not None and quality is not None:
                scores, text = (float(following), float(preserving), float(quality)), "; ".join(map(str, reward.texts))
                if name := released_name(triplets, index, triplet):
                    entries[name] = reward_entry(triplet.id, scores, text)
                yield replace(triplet, scores=scores, reward_text=text)

    report = summary(judged)
    for number, reason in enumerate((reward for reward in judged if isinstance(reward, str)), start=1):
        say_broken(number, reason)
    if report["complete"]:
        with replaced_file(out / "triplets.parquet") as partial:
            write_table(complete(), partial)
        write_file(out / "RewardEdit.json", json.dumps(entries))
    else:
        list(complete())
    write_file(out / "rewards.jsonl", "".join(line + "\n" for line in lines))
    write_file(out / "report.json", json.dumps(report, indent=1) + "\n")
    if not report["complete"]:
        raise MRCError(f"no triplet could be judged; {out / 'report.json'} says why")
    return report


def released_name(triplets: Triplets, index: int, triplet: Triplet) -> str | None:
    """The triplet's key in the released format: its folder, whose lowest seed is the one scored; else its id."""
    if not isinstance(triplets, RewardEdit):
        return triplet.id
    folder = triplets.samples[index][0]
    return folder if index == 0 or triplets.samples[index - 1][0] != folder else None


def summary(judged: list[Reward | str]) -> Report:
    rewards = [reward for reward in judged if isinstance(reward, Reward)]
    table: dict[str, PerspectiveReport] = {}
    for i, perspective in enumerate(PERSPECTIVES):
        scores = [score for reward in rewards if (score := reward.scores[i]) is not None]
        failures = Counter(failure for reward in rewards if (failure := reward.failures[i]) is not None)
        table[perspective] = {
            "scored": len(scores),
            "mean": round(sum(scores) / len(scores), 3) if scores else None,
            "failed": failures.total(),
            "failures": dict(sorted(failures.items())),
        }
    complete = sum(reward.usable for reward in rewards)
    return {
        "triplets": len(judged),
        "complete": complete,
        "incomplete": len(rewards) - complete,
        "unreadable": len(judged) - len(rewards),
        "tokens": sum(reward.tokens for reward in rewards),
        "perspectives": table,
    }
