"""Held-out scenes of the miniature world, edited and scored by its exact oracle.

Every row edits the same scenes with the same seeds: the baseline without rewards, MRC asked for 5,5,5, for 1,1,1, and
for one low score at a time.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..core.files import write_file
from ..core.reward import PERSPECTIVES
from ..engine import Engine
from ..train.miniature.edits import FILM_SHARES, KINDS, Edit, damage, under_film
from ..train.miniature.oracle import PASS, score
from ..train.miniature.photographs import load_photographs
from ..train.miniature.scene import render
from ..train.miniature.triplets import held_out, to_image
from .significance import interval

BATCH = 25
REQUESTS = {
    "MRC 5,5,5": (5, 5, 5),
    "MRC 1,1,1": (1, 1, 1),
    "MRC 1,5,5": (1, 5, 5),
    "MRC 5,1,5": (5, 1, 5),
    "MRC 5,5,1": (5, 5, 1),
}


def faults(edit: Edit, photographs: list[np.ndarray]) -> tuple[str, str, str]:
    """What the oracle says, as in training data, of each fault: undone, the rest damaged, under a film."""
    damaged = damage(np.random.default_rng(0), edit, edit.target)
    faulty = (render(edit.source, photographs), render(damaged, photographs),
              under_film(render(edit.target, photographs), max(FILM_SHARES)))  # fmt: skip
    said = [score(edit, picture, photographs)[1].split("; ")[i] for i, picture in enumerate(faulty)]
    if said[1] == "None":  # this edit's rest is never damaged, or not enough to see
        said[1] = "the rest of the picture changed"
    return said[0], said[1], said[2]


def reward_texts(scores: tuple[int, ...], said: list[tuple[str, str, str]]) -> list[str]:
    """One a scene of its `faults`, where a low score is asked for."""
    return [
        "; ".join("None" if asked == 5 else text for asked, text in zip(scores, texts, strict=True)) for texts in said
    ]


def edited(engine: Engine, edits: list[Edit], photographs: list[np.ndarray], name: str, **settings) -> np.ndarray:
    """The engine's edits, uint8 `[scenes, H, W, 3]`, seed i for scene i; a setting that is a list has one a scene."""
    images = []
    for start in tqdm(range(0, len(edits), BATCH), desc=name, unit="batch", disable=None):
        some = edits[start : start + BATCH]
        sources = [to_image(render(edit.source, photographs)) for edit in some]
        seeds = list(range(start, start + len(some)))
        own: dict[str, Any] = {
            key: value[start : start + BATCH] if isinstance(value, list) else value for key, value in settings.items()
        }
        result = engine.edit(sources, [edit.instruction for edit in some], seed=seeds, resolution=0, **own)
        images += [np.asarray(image) for image in result.images]
    return np.stack(images)


def scores_of(images: np.ndarray, edits: list[Edit], photographs: list[np.ndarray]) -> np.ndarray:
    """Oracle scores `[scenes, 3]`."""
    pairs = zip(edits, tqdm(images, desc="scores", unit="scene", disable=None), strict=True)
    return np.array([score(edit, image, photographs)[0] for edit, image in pairs])


def measure(engine: Engine, edits: list[Edit], photographs: list[np.ndarray], name: str, **settings) -> np.ndarray:
    """Oracle scores `[scenes, 3]` of the engine's edits."""
    return scores_of(edited(engine, edits, photographs, name, **settings), edits, photographs)


def summary(scores: np.ndarray, kinds: list[str]) -> dict:
    """Mean, pass rate in per cent and its interval by perspective; following's pass rate by kind."""
    passed = scores >= PASS
    table: dict = {
        perspective: {
            "mean": round(float(scores[:, i].mean()), 2),
            "pass": round(100 * float(passed[:, i].mean()), 1),
            "interval": interval(int(passed[:, i].sum()), len(scores)),
        }
        for i, perspective in enumerate(PERSPECTIVES)
    }
    of = np.array(kinds)
    table["following_by_kind"] = {
        kind: round(100 * float(passed[of == kind, 0].mean()), 1) for kind in KINDS if (of == kind).any()
    }
    return table


def markdown(report: dict[str, dict]) -> str:
    lines = ["| | " + " | ".join(f"{p}: mean, pass" for p in PERSPECTIVES) + " |", "| --- | --- | --- | --- |"]
    for name, row in report.items():
        cells = [
            f"{row[p]['mean']:.2f}, {row[p]['pass']:.1f} % ({row[p]['interval'][0]}–{row[p]['interval'][1]})"
            for p in PERSPECTIVES
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def steering(edits: list[Edit], photographs: list[np.ndarray], images: dict[str, np.ndarray], path: Path) -> None:
    """A PNG with a row for the first scene of each kind: before, and by each row of the table."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    kinds = [edit.kind for edit in edits]
    shown = [kinds.index(kind) for kind in KINDS if kind in kinds]
    before = np.stack([np.asarray(to_image(render(edits[i].source, photographs))) for i in shown])
    columns = {"before": before} | {name: found[shown] for name, found in images.items()}
    size = (1.6 * len(columns), 1.8 * len(shown))
    figure, panels = plt.subplots(len(shown), len(columns), figsize=size, layout="constrained", squeeze=False)
    for column, (name, pictures) in zip(panels.T, columns.items(), strict=True):
        column[0].set_title(name)
        for axes, picture in zip(column, pictures, strict=True):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
    for axes, i in zip(panels[:, 0], shown, strict=True):
        axes.set_xlabel(edits[i].instruction, loc="left")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    plt.close(figure)
    write_file(path, png.getvalue())


def miniature(
    model: str, baseline: Path | None, folder: Path | None, scenes: int, settings: dict, picture: Path | None
) -> dict[str, dict]:
    """Summaries by row; see the module's docstring. `picture` is where `steering` goes."""
    photographs = load_photographs(folder)
    edits = held_out(photographs, scenes)
    images = {}
    if baseline is not None:
        images["baseline"] = edited(Engine.from_pretrained(baseline), edits, photographs, "baseline", **settings)
    engine = Engine.from_pretrained(model)
    said = [faults(edit, photographs) for edit in tqdm(edits, desc="faults", unit="scene", disable=None)]
    for name, request in REQUESTS.items():
        asked = {"reward_scores": request, "reward_text": reward_texts(request, said)}
        images[name] = edited(engine, edits, photographs, name, **asked, **settings)
    if picture is not None:
        steering(edits, photographs, images, picture)
    kinds = [edit.kind for edit in edits]
    return {name: summary(scores_of(found, edits, photographs), kinds) for name, found in images.items()}
