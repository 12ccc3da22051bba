"""`mrc-rewards build`: triplets -> rewards that `mrc-train` reads.

    OUT/replies/          every reply of the model, stored as it arrives: what a killed run goes on from
    OUT/triplets.parquet  the triplets with their rewards; `mrc-train --data OUT` trains on it
    OUT/RewardEdit.json   the rewards alone in the released format, for `mrc-train --data DATA --rewards …`
    OUT/rewards.jsonl     all that was said of every triplet, failures included
    OUT/report.json       the totals, and what was left out and why

Where a perspective has no score the triplet is in the last two alone: training takes no gaps.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...core.errors import MRCError
from ...core.files import write_file
from ...core.reward import PERSPECTIVES
from ...judge import Judge, Reward
from ...judge.batch import judge_all
from ...judge.detached import alone, run_detached
from ...judge.options import add_arguments as add_judge_arguments
from ...judge.options import given_options, open_judge
from ...judge.questions import VERSION
from ...judge.spending import Spending
from ..data import Triplet, Triplets, open_data
from ..data.reward_edit import RewardEdit
from ..data.writers import reward_entry, write_parquet
from .config import JUDGES, BuildConfig

Judged = list[Reward | str]  # of every triplet; a text where it cannot be read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="what mrc-train --data reads, miniature:N too")
    parser.add_argument("--out", required=True, help="folder; the same again goes on with what is missing")
    parser.add_argument("--judge", choices=JUDGES, default="openai", help="oracle: for miniature:N, exact and free")
    add_judge_arguments(parser, "--model")
    parser.add_argument("--photographs", help="of miniature:N, as in mrc-train")
    parser.add_argument("--seed", type=int, default=0, help="of miniature:N, as in mrc-train")
    parser.add_argument("--ray", action="store_true", help="as a Ray job, on the cluster of RAY_ADDRESS or here")
    parser.add_argument("--workers", type=int, default=2, help="processes of the Ray job; they share the limits")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    config = BuildConfig(
        args.data,
        args.out,
        given_options(args),
        args.judge,
        args.photographs,
        args.seed,
        args.workers if args.ray else None,
        args.json,
    )
    if status := run_detached("mrc_edit.train.rewards", config.to_json()):
        sys.exit(status)


def build(config: BuildConfig, spending: Spending) -> dict[str, Any]:
    """Judge everything and write `config.out`; returns the report.

    Raises:
        MRCError: the data or the judge cannot be used, a limit is reached, or no triplet has all three scores.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        triplets = open_data(config.data, None, config.photographs, config.seed)
        judge = open_config_judge(config, triplets, spending)
        claim(out, config)
        if config.ray_workers is None:
            score = scorer(triplets, judge)
            judged = list(judge_all(score, range(len(triplets)), config.options.concurrency, spending))
        else:
            from .cluster import judge_on_ray  # imports this module

            judged = judge_on_ray(config, len(triplets), spending)
        return write_results(out, triplets, judged)


def claim(out: Path, config: BuildConfig) -> None:
    """Make `out` this build's, or check that it is.

    Raises:
        MRCError: it was built from something else.
    """
    model = config.options.judge_model if config.judge == "openai" else None
    asked = {"data": config.data, "judge": config.judge, "model": model, "prompts": VERSION}
    if config.data.startswith("miniature:"):
        asked |= {"seed": config.seed, "photographs": config.photographs}
    path = out / "build.json"
    if not path.is_file():
        write_file(path, json.dumps(asked, indent=1) + "\n")
    elif (there := json.loads(path.read_text())) != asked:
        raise MRCError(f"{out} was built from {there}, this is {asked}; give another --out")


def open_config_judge(config: BuildConfig, triplets: Triplets, spending: Spending) -> Judge:
    if config.judge == "openai":
        return open_judge(config.options, Path(config.out) / "replies", spending)
    from ..miniature.judge import OracleJudge
    from ..miniature.triplets import MiniatureTriplets

    assert isinstance(triplets, MiniatureTriplets)  # as BuildConfig demands
    edits = (triplets.edit(i)[0] for i in tqdm(range(len(triplets)), desc="draw scenes", disable=None))
    return OracleJudge(edits, triplets.photographs)


def scorer(triplets: Triplets, judge: Judge) -> Callable[[int], Reward | str]:
    """Triplet number -> its reward, or why it cannot be read."""

    def score(index: int) -> Reward | str:
        try:
            triplet = triplets[index]
        except MRCError as error:
            return str(error)
        return judge.score(triplet.source, triplet.edited, triplet.instruction)

    return score


def write_results(out: Path, triplets: Triplets, judged: Judged) -> dict[str, Any]:
    """Write the files of the module's docstring; each appears whole.

    Raises:
        MRCError: no triplet has all three scores; then there is nothing to train on, but the last two files are.
    """
    lines: list[str] = []
    entries: dict[str, list[dict[str, Any]]] = {}

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
    if report["complete"]:
        partial = out / ".partial"
        partial.mkdir(exist_ok=True)
        write_parquet(complete(), partial)
        (partial / "triplets.parquet").replace(out / "triplets.parquet")
        partial.rmdir()
        write_file(out / "RewardEdit.json", json.dumps(entries))
    else:
        list(complete())
    write_file(out / "rewards.jsonl", "".join(line + "\n" for line in lines))
    write_file(out / "report.json", json.dumps(report, indent=1) + "\n")
    if not report["complete"]:
        raise MRCError(f"no triplet could be judged; {out / 'report.json'} says why")
    return report


def released_name(triplets: Triplets, index: int, triplet: Triplet) -> str | None:
    """What the released format knows a triplet by: its folder, of which it scores the lowest seed; else the id."""
    if not isinstance(triplets, RewardEdit):
        return triplet.id
    folder = triplets.samples[index][0]
    return folder if index == 0 or triplets.samples[index - 1][0] != folder else None


def summary(judged: Judged) -> dict[str, Any]:
    """Totals: `triplets` are `complete`, `incomplete` (a perspective without a score) and `unreadable` ones."""
    rewards = [reward for reward in judged if isinstance(reward, Reward)]
    table = {}
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
