"""Two runs over the same items, side by side, with paired significance."""

import shutil
from pathlib import Path

from ...core.errors import MRCError
from ...core.files import claim_folder, write_json
from ...core.paths import file_inside
from ...core.reward import PERSPECTIVES
from ...core.tables import Table
from ...train.rewards.runs import read_run
from ..significance import mcnemar, mean_interval, wilcoxon
from .gallery import Card, write_gallery
from .items import TYPES
from .proxies import METRICS
from .report import OVERALL

NOTE = (
    "Only pairs that could be judged in both runs; the others are left out and counted. p of accuracy: McNemar, exact, "
    "on the edits of which one passed; p of a mean: Wilcoxon's signed ranks. 95 % interval of the difference: "
    "bootstrap over images. No correction for looking at several rows."
)


def compare(first: Path, second: Path, out: Path) -> dict:
    """Compare two run folders; writes `out/comparison.json` and the page `out/index.html`, and returns the former.

    Raises:
        MRCError: no finished runs, other items or judges, or an `out` that holds something else.
    """
    runs = read_run(first, METRICS), read_run(second, METRICS)
    pairs = paired(runs, (first, second))
    if out.exists() and any(out.iterdir()) and not (out / "comparison.json").is_file():
        raise MRCError(f"{out} holds other things than a comparison; give an empty or a new folder")
    groups = {kind: [pair for pair in pairs if pair[0]["type"] == kind] for kind in TYPES} | {OVERALL: pairs}
    groups = {kind: group for kind, group in groups.items() if group}
    report: dict = {
        "a": runs[0]["run"],
        "b": runs[1]["run"],
        "judge": runs[0]["judge"],
        "left_out": len({one["name"] for run in runs for one in run["items"]}) - len(pairs),
        "judged": None,
        "proxies": {kind: {name: proxy_pairs(group, name) for name in METRICS} for kind, group in groups.items()},
    }
    if report["judge"]:
        report["judged"] = {
            kind: {perspective: judged_pairs(group, i) for i, perspective in enumerate(PERSPECTIVES)}
            for kind, group in groups.items()
        }
    claim_folder(out, "comparison.json", "a comparison")
    out.mkdir(parents=True, exist_ok=True)
    cards = []
    for pair in pairs:
        edits = []
        for letter, folder, one in zip("ab", (first, second), pair, strict=True):
            edits.append((letter.upper(), copied(folder, one["edit"], out, letter), one["reward"]))
        source = copied(first, pair[0]["source"], out, "sources")
        cards.append(Card.of(pair[0] | {"source": source}, edits))
    write_gallery(out, f"A {first.name}, B {second.name}", tables(report), cards)
    write_json(out / "comparison.json", report)
    return report


def paired(runs: tuple[dict, dict], folders: tuple[Path, Path]) -> list[tuple[dict, dict]]:
    first, second = ({one["name"]: one for one in run["items"]} for run in runs)
    if runs[0]["run"]["data"] != runs[1]["run"]["data"]:
        raise MRCError(f"{folders[0]} and {folders[1]} are runs over other data; run both over the same --real-edit")
    if runs[0]["judge"] != runs[1]["judge"]:
        raise MRCError(
            f"{folders[0]} was judged by {runs[0]['judge']}, {folders[1]} by {runs[1]['judge']}; judge both alike"
        )
    pairs = [(one, second[name]) for name, one in first.items() if name in second]
    if not pairs:
        raise MRCError(f"{folders[0]} and {folders[1]} have no item in common; run both over the same --real-edit")
    return pairs


def judged_pairs(pairs: list[tuple[dict, dict]], i: int) -> dict:
    """Perspective `i` of paired items."""
    used = [pair for pair in pairs if all(one["reward"]["scores"][i] is not None for one in pair)]
    row: dict = {"n": len(used), "left_out": len(pairs) - len(used)}
    if not used:
        return row
    passes = [tuple(one["reward"]["verdicts"][i] for one in pair) for pair in used]
    only = passes.count((True, False)), passes.count((False, True))
    accuracies = [round(100 * sum(column) / len(used), 1) for column in zip(*passes, strict=True)]
    scores = [tuple(one["reward"]["scores"][i] for one in pair) for pair in used]
    return row | {
        "accuracy": accuracies,
        "passed_only_in": only,
        "p_accuracy": mcnemar(*only),
        **differences(scores, [pair[0]["image"] for pair in used]),
    }


def proxy_pairs(pairs: list[tuple[dict, dict]], name: str) -> dict:
    used = [pair for pair in pairs if all(one["proxies"][name] is not None for one in pair)]
    row: dict = {"n": len(used), "left_out": len(pairs) - len(used)}
    if not used:
        return row
    values = [tuple(one["proxies"][name] for one in pair) for pair in used]
    return row | differences(values, [pair[0]["image"] for pair in used])


def differences(values: list[tuple], images: list[str]) -> dict:
    changes = [b - a for a, b in values]
    return {
        "mean": [round(sum(column) / len(values), 4) for column in zip(*values, strict=True)],
        "difference": round(sum(changes) / len(changes), 4),
        "interval": [round(end, 4) for end in mean_interval(changes, images)],
        "p_mean": wilcoxon(changes),
    }


def copied(run: Path, picture: str, out: Path, folder: str) -> str:
    """Copy a picture of a run into a folder of the page; returns its path from the page."""
    source = file_inside(run, picture)
    (out / folder).mkdir(exist_ok=True)
    shutil.copyfile(source, out / folder / Path(picture).name)
    return f"{folder}/{Path(picture).name}"


def tables(report: dict) -> list[Table]:
    """The tables of a comparison."""
    shown = []
    if report["judged"]:
        rows = [
            [kind, perspective, str(row["n"]), str(row["left_out"]), *accuracy_cells(row), *mean_cells(row)]
            for kind, group in report["judged"].items()
            for perspective, row in group.items()
        ]
        head = ["type", "perspective", "n", "left out", "accuracy A, B", "passed only in A, B", "p", *MEANS]
        shown.append(Table("Judged", head, rows, NOTE))
    rows = [
        [heading, str(row["n"]), *mean_cells(row)]
        for name, heading in METRICS.items()
        for row in [report["proxies"][OVERALL][name]]
    ]
    note = f"Items that only one run has, left out of all tables: {report['left_out']}." if report["left_out"] else ""
    return [*shown, Table("Proxies (no judge), overall", ["proxy", "n", *MEANS], rows, note)]


MEANS = ["mean A, B", "difference (95 %)", "p"]


def accuracy_cells(row: dict) -> list[str]:
    if not row["n"]:
        return ["–"] * 3
    return ["{} %, {} %".format(*row["accuracy"]), "{}, {}".format(*row["passed_only_in"]), f"{row['p_accuracy']:.2g}"]


def mean_cells(row: dict) -> list[str]:
    if not row["n"]:
        return ["–"] * 3
    low, high = row["interval"]
    first, second = row["mean"]
    return [
        f"{first:.3g}, {second:.3g}",
        f"{row['difference']:+.3g} ({low:.3g} to {high:.3g})",
        f"{row['p_mean']:.2g}",
    ]
