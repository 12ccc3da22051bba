"""Held-out scenes of the miniature world, edited and scored by its exact oracle.

Every row edits the same scenes with the same seeds: the baseline without rewards, MRC asked for 5,5,5, for 1,1,1, and
for one low score at a time.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from mrc_edit.bench.report import Column, Row
from mrc_edit.bench.significance import interval
from mrc_edit.core.figures import new_figure, write_figure
from mrc_edit.core.reward import PERSPECTIVES
from mrc_edit.core.schema import JsonObject
from mrc_edit.engine import Engine
from mrc_edit.train.miniature.edits import FILM_SHARES, KINDS, Edit, damage, under_film
from mrc_edit.train.miniature.oracle import PASS, score
from mrc_edit.train.miniature.photographs import load_photographs
from mrc_edit.train.miniature.scene import render
from mrc_edit.train.miniature.triplets import held_out, to_image
from mrc_edit.train.objective import HIDDEN_SCORES

BATCH = 25
REQUESTS = {
    "MRC 5,5,5": (5, 5, 5),
    "MRC 1,1,1": (1, 1, 1),
    "MRC 1,5,5": (1, 5, 5),
    "MRC 5,1,5": (5, 1, 5),
    "MRC 5,5,1": (5, 5, 1),
}
HIDDEN: dict[str, dict] = {"scores": {"reward_text": ""}, "text": {"reward_scores": HIDDEN_SCORES}}


def fault_texts(edit: Edit, photographs: list[np.ndarray]) -> tuple[str, str, str]:
    """The oracle's text, as in training data, for each fault: not done, the rest damaged, under a film."""
    damaged = damage(np.random.default_rng(0), edit, edit.target)
    faulty = (render(edit.source, photographs), render(damaged, photographs),
              under_film(render(edit.target, photographs), max(FILM_SHARES)))  # fmt: skip
    texts = [score(edit, picture, photographs)[1].split("; ")[i] for i, picture in enumerate(faulty)]
    if texts[1] == "None":  # this edit's rest is never damaged, or not enough to see
        texts[1] = "the rest of the picture changed"
    return texts[0], texts[1], texts[2]


def reward_texts(scores: tuple[int, ...], faults: list[tuple[str, str, str]]) -> list[str]:
    """A reward text a scene: its `fault_texts` where a score below 5 is asked for."""
    return [
        "; ".join("None" if asked == 5 else text for asked, text in zip(scores, texts, strict=True)) for texts in faults
    ]


def edit_scenes(
    engine: Engine, edits: list[Edit], photographs: list[np.ndarray], name: str, **settings: object
) -> np.ndarray:
    """The engine's edits, uint8 `[scenes, H, W, 3]`, seed i for scene i; a setting that is a list has one a scene."""
    images: list[np.ndarray] = []
    for start in tqdm(range(0, len(edits), BATCH), desc=name, unit="batch", disable=None):
        batch = edits[start : start + BATCH]
        sources = [to_image(render(edit.source, photographs)) for edit in batch]
        seeds = list(range(start, start + len(batch)))
        own: JsonObject = {
            key: value[start : start + BATCH] if isinstance(value, list) else value for key, value in settings.items()
        }
        result = engine.edit(sources, [edit.instruction for edit in batch], seed=seeds, resolution=0, **own)
        images += [np.asarray(image) for image in result.images]
    return np.stack(images)


def score_scenes(images: np.ndarray, edits: list[Edit], photographs: list[np.ndarray]) -> np.ndarray:
    """Oracle scores `[scenes, 3]`."""
    pairs = zip(edits, tqdm(images, desc="scores", unit="scene", disable=None), strict=True)
    return np.array([score(edit, image, photographs)[0] for edit, image in pairs])


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
    by_scene = np.array(kinds)
    table["following_by_kind"] = {
        kind: round(100 * float(passed[by_scene == kind, 0].mean()), 1) for kind in KINDS if (by_scene == kind).any()
    }
    return table


COLUMNS = [
    Column("", "{name}"),
    *(
        Column(f"{p}: mean, pass", f"{{{p}_mean:.2f}}, {{{p}_pass:.1f}} % ({{{p}_low}}–{{{p}_high}})")
        for p in PERSPECTIVES
    ),
]


def rows(report: dict[str, dict]) -> list[Row]:
    """Flat rows of the summaries, for `COLUMNS`."""
    flat: list[Row] = []
    for name, summary in report.items():
        row: dict[str, str | float | None] = {"name": name}
        for p in PERSPECTIVES:
            row[f"{p}_mean"], row[f"{p}_pass"] = summary[p]["mean"], summary[p]["pass"]
            row[f"{p}_low"], row[f"{p}_high"] = summary[p]["interval"]
        flat.append(row)
    return flat


def draw_steering(edits: list[Edit], photographs: list[np.ndarray], images: dict[str, np.ndarray], path: Path) -> None:
    """A PNG with a row for the first scene of each kind: before, and by each row of the table."""
    kinds = [edit.kind for edit in edits]
    shown = [kinds.index(kind) for kind in KINDS if kind in kinds]
    before = np.stack([np.asarray(to_image(render(edits[i].source, photographs))) for i in shown])
    columns = {"before": before} | {name: pictures[shown] for name, pictures in images.items()}
    figure = new_figure(1.6 * len(columns), 1.8 * len(shown))
    panels = figure.subplots(len(shown), len(columns), squeeze=False)
    for column, (name, pictures) in zip(panels.T, columns.items(), strict=True):
        column[0].set_title(name)
        for axes, picture in zip(column, pictures, strict=True):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
    for axes, i in zip(panels[:, 0], shown, strict=True):
        axes.set_xlabel(edits[i].instruction, loc="left")
    write_figure(path, figure, dpi=100)


def miniature(
    model: str, baseline: Path | None, folder: Path | None, scenes: int, settings: dict, picture: Path | None,
    *, baseline_steps: int | None = None, reward_only: str = "all",
) -> dict[str, dict]:  # fmt: skip
    """Summaries by row; see the module's docstring.

    Args:
        folder: of photographs, as for training.
        settings: arguments of `Engine.edit`.
        picture: where `draw_steering` writes.
        baseline_steps: of the baseline, where they are others than in `settings`.
        reward_only: "scores" or "text", for a model that `mrc-train --reward-only` trained with that alone.
    """
    photographs = load_photographs(folder)
    edits = held_out(photographs, scenes)
    images = {}
    if baseline is not None:
        own = settings | {"num_inference_steps": baseline_steps or settings["num_inference_steps"]}
        images["baseline"] = edit_scenes(Engine.from_pretrained(baseline), edits, photographs, "baseline", **own)
    engine = Engine.from_pretrained(model)
    faults = [fault_texts(edit, photographs) for edit in tqdm(edits, desc="faults", unit="scene", disable=None)]
    for name, request in REQUESTS.items():
        rewards: dict = {"reward_scores": request, "reward_text": reward_texts(request, faults)}
        rewards |= HIDDEN.get(reward_only, {})
        images[name] = edit_scenes(engine, edits, photographs, name, **rewards, **settings)
    if picture is not None:
        draw_steering(edits, photographs, images, picture)
    kinds = [edit.kind for edit in edits]
    return {name: summary(score_scenes(pictures, edits, photographs), kinds) for name, pictures in images.items()}
