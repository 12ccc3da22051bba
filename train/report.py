"""The page at the end of a run, `report.html`: loss curve, edits, settings."""

import base64
import html
from pathlib import Path

import matplotlib  # noqa: F401  so a missing matplotlib stops the command before the training
import numpy as np

from ..core.errors import MRCError
from ..core.figures import encoded, new_figure
from ..core.files import read_json, write_file
from ..core.reward import PERSPECTIVES


def write_report(out: Path) -> None:
    """Write `report.html` from training.json, validation grids and the scores.json of `mrc_edit.bench.quality`, if
    there is one. The page is one file without links."""
    record = read_json(out / "training.json", "train again, or restore it")
    grids = sorted(path for path in (out / "validation").glob("*.png") if path.stem.isdecimal())
    chosen = [grids[round(i)] for i in np.linspace(0, len(grids) - 1, min(4, len(grids)))]
    settings = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in (record["config"] | record["versions"]).items()
    )
    pictures = "".join(
        f"<figure><figcaption>step {int(grid.stem)}: source, edit, the data's edit</figcaption>"
        f"{embedded(grid.read_bytes())}</figure>"
        for grid in chosen
    )
    scores = out / "scores.json"
    table = score_table(scores) if scores.is_file() else ""
    write_file(
        out / "report.html",
        "<!doctype html><meta charset=utf-8><title>mrc-train</title>"
        "<style>body{font:14px sans-serif;margin:2em}figure{display:inline-block;vertical-align:top}</style>"
        f"<h1>Training</h1><p>{record['seconds']} s, {len(record['broken'])} broken samples</p>"
        f"{embedded(loss_plot(record['loss_every_50_steps']))}{table}<h2>Edits</h2>{pictures}"
        f"<h2>Settings</h2><table>{settings}</table>",
    )


def score_table(path: Path) -> str:
    """Mean score, pass rate and its interval of every row and perspective of a scores.json.

    Raises:
        MRCError: another file, or a damaged one.
    """
    remedy = "measure again, or remove it"
    scores = read_json(path, remedy)
    heads = "".join(f"<th>{perspective}: mean, pass (95 %)</th>" for perspective in PERSPECTIVES)
    try:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th>" + "".join(score_cell(row[p]) for p in PERSPECTIVES)
            for name, row in scores["rows"].items()
        )
        about = html.escape(f"{scores['scenes']} held-out scenes, {scores['settings']}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise MRCError(f"{path} is damaged ({error!r}); {remedy}") from None
    return f"<h2>Scores</h2><p>{about}</p><table><tr><th>{heads}{cells}</table>"


def score_cell(cell: dict) -> str:
    low, high = cell["interval"]
    return f"<td>{cell['mean']:.2f}, {cell['pass']:.1f} % ({float(low)}–{float(high)})</td>"


def embedded(png: bytes) -> str:
    """An image element with the picture in it."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def loss_plot(means: list[list[float]]) -> bytes:
    """PNG of [step, loss] points."""
    figure = new_figure(7, 3)
    axes = figure.subplots()
    axes.plot([step for step, _ in means], [loss for _, loss in means])
    axes.set(xlabel="step", ylabel="loss, mean of 50 steps")
    return encoded(figure, dpi=100)
