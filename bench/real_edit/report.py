"""The figures of a run: accuracy and mean score by edit type, the proxies, and the published figures."""

from ...core.reward import PERSPECTIVES
from ...core.tables import Table
from ..significance import interval, mean_interval
from .items import TYPES
from .proxies import METRICS

OVERALL = "overall"
# Accuracy in per cent, judged by GPT-4o on all 560 items; SuperEdit (arXiv 2505.02370), table 1
PUBLISHED = {
    "InstructPix2Pix": (52, 53, 50),
    "MagicBrush": (51, 70, 50),
    "HIVE": (54, 56, 53),
    "SmartEdit": (64, 66, 45),
    "Reward-InsPix2Pix": (63, 58, 54),
    "SuperEdit": (67, 77, 65),
}


def summary(records: list[dict]) -> dict:
    """Figures by edit type and overall: `judged` (None without a judge) and `proxies`."""
    groups = {kind: [one for one in records if one["type"] == kind] for kind in TYPES} | {OVERALL: records}
    groups = {kind: group for kind, group in groups.items() if group}
    judged = any(one["reward"] for one in records)
    return {
        "judged": {kind: judged_row(group) for kind, group in groups.items()} if judged else None,
        "proxies": {kind: proxy_row(group) for kind, group in groups.items()},
    }


def judged_row(records: list[dict]) -> dict:
    """Accuracy (share of yes, per cent) and mean score of every perspective, with 95 % intervals.

    Both count the usable replies alone; `failures` counts the others.
    """
    row: dict = {"n": len(records)}
    for i, perspective in enumerate(PERSPECTIVES):
        used = [one for one in records if one["reward"]["scores"][i] is not None]
        row[perspective] = {"judged": len(used), "failures": len(records) - len(used)}
        if used:
            scores = [one["reward"]["scores"][i] for one in used]
            passed = sum(one["reward"]["verdicts"][i] for one in used)
            low, high = mean_interval(scores, [one["image"] for one in used])
            row[perspective] |= {
                "accuracy": round(100 * passed / len(used), 1),
                "accuracy_interval": interval(passed, len(used)),
                "mean": round(sum(scores) / len(used), 2),
                "mean_interval": (round(low, 2), round(high, 2)),
            }
    return row


def proxy_row(records: list[dict]) -> dict:
    """Mean of every proxy and the number of edits behind it."""
    row: dict = {"n": len(records)}
    for name in METRICS:
        values = [one["proxies"][name] for one in records if one["proxies"][name] is not None]
        row[name] = {"n": len(values), "mean": round(sum(values) / len(values), 4) if values else None}
    return row


def tables(results: dict) -> list[Table]:
    """The tables of results.json."""
    judged, proxies = results["tables"]["judged"], results["tables"]["proxies"]
    tables_of_judge = [judged_table(judged, results), published_table(judged)] if judged else []
    left_out = [left_out_table(results["left_out"])] if results["left_out"] else []
    return [*tables_of_judge, proxy_table(proxies), *left_out]


def left_out_table(lines: list[str]) -> Table:
    return Table(f"Left out: {len(lines)}", ["why"], [[line] for line in lines], "The figures are of the other items.")


def judged_table(judged: dict, results: dict) -> Table:
    head = ["type", *(f"{p}: accuracy, score" for p in PERSPECTIVES), "n", "failures"]
    rows = [
        [
            kind,
            *(judged_cell(row[p]) for p in PERSPECTIVES),
            str(row["n"]),
            " / ".join(str(row[p]["failures"]) for p in PERSPECTIVES),
        ]
        for kind, row in judged.items()
    ]
    judge = ", ".join(f"{key} {value}" for key, value in results["judge"].items())
    return Table(
        "Judged", head, rows,
        f"95 % intervals in brackets. Judge: {judge}; {results['tokens']} tokens. "
        "Failures are replies that stayed unusable, by perspective; accuracy and score count the others.",
    )  # fmt: skip


def judged_cell(cell: dict) -> str:
    if not cell["judged"]:
        return "–"
    (low, high), (least, most) = cell["accuracy_interval"], cell["mean_interval"]
    return f"{cell['accuracy']:.1f} % ({low}–{high}), {cell['mean']:.2f} ({least:.2f}–{most:.2f})"


def published_table(judged: dict) -> Table:
    overall = judged[OVERALL]
    ours = [f"{overall[p]['accuracy']:.0f} %" if overall[p]["judged"] else "–" for p in PERSPECTIVES]
    rows = [["this run", *ours, f"measured here, {overall['n']} items"]]
    rows += [[name, *(f"{figure} %" for figure in figures), "published"] for name, figures in PUBLISHED.items()]
    return Table(
        "Accuracy beside published figures", ["model", *PERSPECTIVES, "source"], rows,
        "Published: SuperEdit (arXiv 2505.02370), table 1, judged by GPT-4o on all of Real-Edit. "
        "Another judge, other prompts or fewer items make figures that cannot be compared.",
    )  # fmt: skip


def proxy_table(proxies: dict) -> Table:
    rows = [
        [kind, *("–" if row[name]["mean"] is None else f"{row[name]['mean']:.3g}" for name in METRICS), str(row["n"])]
        for kind, row in proxies.items()
    ]
    return Table(
        "Proxies (no judge)", ["type", *METRICS.values(), "n"], rows,
        "Means. PSNR, SSIM and distances outside the edited area, which is estimated from the difference; "
        "blur, noise and clipped are the edit's less the source's. Proxies do not know the instruction.",
    )  # fmt: skip
