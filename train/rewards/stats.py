"""`mrc-rewards stats`: how scores are spread and which words name failures (the paper's figures 3 and 4)."""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import TypedDict

import numpy as np

from ...core.errors import MRCError
from ...core.figures import encoded, new_figure
from ...core.files import read_json, write_file
from ...core.reward import PERSPECTIVES
from ..data.reward_edit import read_rewards, reward
from ..data.triplet import check_scores

WORDS = 20  # the most frequent ones are listed
# Words that name no failure
STOP = re.compile(
    "a|all|also|an|and|another|any|are|as|at|be|been|but|by|can|could|did|do|does|for|from|had|has|have|here|in|into|is|it|"
    "its|more|most|no|not|of|on|only|or|other|out|over|so|some|still|than|that|the|their|them|there|these|they|this|to|too|"
    "very|was|were|which|while|with|would"
)


class PerspectiveStats(TypedDict):
    """Of one perspective: mean score, number of triplets with score 0 to 5, number of failure texts a word."""

    mean: float
    histogram: list[int]
    words: list[tuple[str, int]]


class Stats(TypedDict):
    """`left_out` are triplets without a complete reward, by the report beside the JSON."""

    triplets: int
    left_out: int
    perspectives: dict[str, PerspectiveStats]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rewards", type=Path, help="RewardEdit JSON, or OUT of mrc-rewards build")
    parser.add_argument("--plot", type=Path, help="PNG to draw (default: stats.png beside the JSON)")
    parser.add_argument("--json", action="store_true", help="print the statistics as JSON (default: no)")


def run(args: argparse.Namespace) -> None:
    path = args.rewards / "RewardEdit.json" if args.rewards.is_dir() else args.rewards
    stats = statistics(path)
    plot = args.plot or path.with_name("stats.png")
    write_file(plot, draw(stats))
    if args.json:
        print(json.dumps(stats))
        return
    print(f"{stats['triplets']} triplets" + (f", {stats['left_out']} left out" if stats["left_out"] else ""))
    for perspective, row in stats["perspectives"].items():
        words = ", ".join(f"{word} {count}" for word, count in row["words"][:8])
        print(f"{perspective}: mean {row['mean']:.2f}, of scores 0 to 5 {row['histogram']}; {words}")
    print(plot)


def statistics(path: Path) -> Stats:
    """Statistics of a RewardEdit JSON.

    Raises:
        MRCError: no such JSON, or an entry that is no reward.
    """
    texts: list[list[str]] = []
    scores = []
    for name, entry in read_rewards(path).items():
        scores.append(check_scores(name, reward(name, entry)[0]))
        texts.append([part["Negative Prompt"].strip() for part in entry])
    numbers = np.array(scores)
    return {
        "triplets": len(scores),
        "left_out": left_out(path.with_name("report.json")),
        "perspectives": {
            perspective: {
                "mean": round(float(numbers[:, i].mean()), 3),
                "histogram": np.bincount(np.rint(numbers[:, i]).astype(int), minlength=6).tolist(),
                "words": frequent_words([text[i] for text in texts]),
            }
            for i, perspective in enumerate(PERSPECTIVES)
        },
    }


def left_out(report: Path) -> int:
    """The triplets without a complete reward, by a build's report; 0 without one.

    Raises:
        MRCError: a report of another form.
    """
    if not report.is_file():
        return 0
    remedy = "build it again, or remove it"
    totals = read_json(report, remedy)
    counts = [totals.get(name) for name in ("incomplete", "unreadable")]
    numbers = [count for count in counts if type(count) is int and 0 <= count < 10**12]
    if len(numbers) < len(counts):
        raise MRCError(f"{report} has no counts of incomplete and unreadable triplets; {remedy}")
    return sum(numbers)


def frequent_words(texts: list[str]) -> list[tuple[str, int]]:
    """The words of the most failure texts, with the number of texts; ties in alphabetical order."""
    counts = Counter(
        word
        for text in texts
        if text.lower().strip(" .") != "none"
        for word in set(re.findall(r"[^\W\d_]{2,}", text.lower()))
        if not STOP.fullmatch(word)
    )
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:WORDS]


def draw(stats: Stats) -> bytes:
    """PNG: histograms in the upper row, words in the lower one."""
    figure = new_figure(12, 8)
    axes = figure.subplots(2, len(PERSPECTIVES), height_ratios=(2, 3))
    for column, (perspective, row) in zip(axes.T, stats["perspectives"].items(), strict=True):
        above, below = column
        above.bar(range(6), row["histogram"], color="tab:blue")
        above.set(title=f"{perspective}, mean {row['mean']:.2f}", xlabel="score", ylabel="triplets")
        words, counts = zip(*reversed(row["words"]), strict=True) if row["words"] else ((), ())
        below.barh(words, counts, color="tab:orange")
        below.set(xlabel="failure texts with the word")
    return encoded(figure, dpi=100)
