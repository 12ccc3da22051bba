"""What a run looks like: grids of edits while it trains, one HTML page at its end."""

import base64
import html
import io
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw

from ..core.errors import MRCError
from ..core.reward import PERSPECTIVES
from ..model.checkpoint import Checkpoint
from ..model.pipeline import decode_latents, edit_latents
from .data import Triplets
from .data.batches import fit_pair

GRID = 6  # edits a grid
STEPS = 20  # denoising steps of each
CAPTION = 14  # pixels


def validation_grid(checkpoint: Checkpoint, triplets: Triplets, size: int) -> Image.Image:
    """A picture of the data's first samples: source, our edit (asked for 5,5,5), the data's edit."""
    samples = []
    for index in range(len(triplets)):
        try:
            samples.append(triplets[index])
        except MRCError:  # counted and reported where it is trained on
            continue
        if len(samples) == GRID:
            break
    pairs = [fit_pair(sample.source, sample.edited, size, flip=False, crop=(0.5, 0.5)) for sample in samples]
    sources = torch.from_numpy(np.stack([source for source, _ in pairs])).to(checkpoint.vae.device)
    generators = [torch.Generator().manual_seed(i) for i in range(len(samples))]
    latents = edit_latents(
        checkpoint, sources, [s.instruction for s in samples], generators, num_inference_steps=STEPS, guidance_scale=3.0
    )
    edits = decode_latents(checkpoint, latents).cpu().numpy()
    rows = [np.concatenate([source, edit, edited], axis=2) for (source, edited), edit in zip(pairs, edits, strict=True)]
    picture = Image.new("RGB", (3 * size, len(rows) * (size + CAPTION)), "white")
    draw = ImageDraw.Draw(picture)
    for i, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        top = i * (size + CAPTION)
        draw.text((2, top + 1), sample.instruction, fill="black")
        pixels = ((row.transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        picture.paste(Image.fromarray(pixels), (0, top + CAPTION))
    return picture


def write_report(out: Path) -> None:
    """`report.html` of a finished run, from its training.json, validation grids and, where
    `mrc_edit.bench.quality` has measured it, scores.json; one file, no links."""
    record = json.loads((out / "training.json").read_text())
    grids = sorted((out / "validation").glob("*.png"))
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
    table = f"<h2>Scores</h2>{score_table(json.loads(scores.read_text()))}" if scores.is_file() else ""
    (out / "report.html").write_text(
        "<!doctype html><meta charset=utf-8><title>mrc-train</title>"
        "<style>body{font:14px sans-serif;margin:2em}figure{display:inline-block;vertical-align:top}</style>"
        f"<h1>Training</h1><p>{record['seconds']} s, {len(record['broken'])} broken samples</p>"
        f"{embedded(loss_plot(record['loss_every_50_steps']))}{table}<h2>Edits</h2>{pictures}"
        f"<h2>Settings</h2><table>{settings}</table>"
    )


def score_table(scores: dict) -> str:
    """Mean score, pass rate and its interval of every row and perspective."""
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(
            f"<td>{row[p]['mean']:.2f}, {row[p]['pass']:.1f} % ({row[p]['interval'][0]}–{row[p]['interval'][1]})</td>"
            for p in PERSPECTIVES
        )
        for name, row in scores["rows"].items()
    )
    heads = "".join(f"<th>{perspective}: mean, pass (95 %)</th>" for perspective in PERSPECTIVES)
    settings = html.escape(str(scores["settings"]))
    return f"<p>{scores['scenes']} held-out scenes, {settings}</p><table><tr><th>{heads}{cells}</table>"


def embedded(png: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def loss_plot(means: list[list[float]]) -> bytes:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.plot([step for step, _ in means], [loss for _, loss in means])
    axes.set(xlabel="step", ylabel="loss, mean of 50 steps")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pyplot.close(figure)
    return buffer.getvalue()
