"""The exact oracle: three scores, 0–5, of any edit whose scene is known.

All errors are measured on pictures averaged over 4×4 pixels, `[32, 32, 3]`, so that the VAE's fine blur
counts little.

    following    share of the asked change that is missing, where the edit asks for a change
    preserving   difference from the source elsewhere
                 (for edits of the whole picture after the best linear colour map, so that only structure counts)
    quality      distance of each pixel from the nearest clean picture that this world could show there

A film over the whole picture counts in quality alone: the other two are measured after removing it.
"""

import numpy as np

from .edits import FILM, Edit
from .scene import (
    BACKGROUNDS,
    COLOURS,
    SIZE,
    STYLES,
    TONES,
    Thing,
    background,
    level,
    mask,
    named_background,
    render,
    stylize,
    tone,
)

POOL = 4
PASS = 4  # lowest score with which an edit passes a perspective
# Errors (levels of 255) at which a score is 5 and 0; following is a share of the asked change
FOLLOWING = (0.30, 0.85)
PRESERVING = (11.0, 38.0)
QUALITY = (9.0, 36.0)
CLEAN_SHADES = (0.45, 0.6, 0.75, 0.9)  # a dark background is a fault of preserving, not of quality
STRONGEST_FILM = 0.4  # share of the light; a higher share means another fault


def pooled(picture: np.ndarray) -> np.ndarray:
    """`[128, 128, …]` → `[32, 32, …]`. Rows first: numpy's mean over both axes at once takes six times as long."""
    rows = picture.reshape(SIZE // POOL, POOL, *picture.shape[1:]).mean(1)
    return rows.reshape(SIZE // POOL, SIZE // POOL, POOL, *picture.shape[2:]).mean(2)


def rms(error: np.ndarray, weight: np.ndarray) -> float:
    """Root mean square over channels and positions with `weight` `[32, 32]`."""
    return float(np.sqrt(((error**2).mean(-1) * weight).sum() / max(float(weight.sum()), 1e-6)))


def grade(error: float, limits: tuple[float, float]) -> int:
    """5 up to the first limit, 0 from the second, linear between them."""
    best, worst = limits
    return round(5 * float(np.clip((worst - error) / (worst - best), 0, 1)))


def score(edit: Edit, edited: np.ndarray, photographs: list[np.ndarray]) -> tuple[tuple[int, int, int], str]:
    """Scores (following, preserving, quality) and the reward text of an edited picture.

    Args:
        edited: `[128, 128, 3]`, 0…255, any numeric dtype.
    """
    source, target = (pooled(render(scene, photographs)) for scene in (edit.source, edit.target))
    actual = pooled(np.asarray(edited, dtype=np.float32))
    asked = change_region(edit, source, target)
    stay = stay_region(edit, asked)
    film = film_share(actual, target, stay)
    clear = (actual - film * FILM) / (1 - film)
    change = max(rms(target - source, asked), 1.0)
    missing = rms(target - clear, asked) / change
    following = grade(missing, FOLLOWING)
    preserving = grade(preserving_error(edit, clear, target, stay), PRESERVING)
    quality = grade(quality_error(edit, actual, source, target, photographs), QUALITY)
    texts = (
        "None" if following == 5 else following_text(edit, clear, source, asked, change),
        "None" if preserving == 5 else preserving_text(edit, clear, target, stay),
        "None" if quality == 5 else "the picture became purple" if film > 0.1 else "coloured spots and noise",
    )
    return (following, preserving, quality), "; ".join(texts)


def film_share(actual: np.ndarray, target: np.ndarray, stay: np.ndarray) -> float:
    """Share of `FILM`, 0…0.4, where the picture should stay: least squares over film and brightness together."""
    positions = stay > 0
    parts = np.stack([target[positions].ravel(), np.broadcast_to(FILM, target.shape)[positions].ravel()], axis=1)
    return float(np.clip(np.linalg.lstsq(parts, actual[positions].ravel(), rcond=None)[0][1], 0, STRONGEST_FILM))


def change_region(edit: Edit, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weight `[32, 32]` of the positions where the edit asks for a change."""
    if edit.whole:
        return np.ones(source.shape[:2], np.float32)
    changes = np.abs(target - source).max(-1) > 12
    if edit.kind == "texture":  # all of the object: one plain colour is no pattern
        changes |= pooled(mask(edit.source.things[edit.touched[0]])) > 0.5
    return changes.astype(np.float32)


def stay_region(edit: Edit, asked: np.ndarray) -> np.ndarray:
    """Weight `[32, 32]` of what should stay."""
    if edit.whole:
        return np.ones_like(asked)
    if edit.kind == "background":  # only the objects should stay
        return np.minimum(1, sum(inside(thing) for thing in edit.source.things))
    return 1 - grown(asked)


def inside(thing: Thing) -> np.ndarray:
    """Weight `[32, 32]` of the positions that an object fills."""
    return (pooled(mask(thing)) > 0.9).astype(np.float32)


def preserving_error(edit: Edit, actual: np.ndarray, target: np.ndarray, stay: np.ndarray) -> float:
    """Root mean square difference where the picture should stay; for whole-picture edits after a linear colour map."""
    if not edit.whole:
        return rms(actual - target, stay)
    colours = np.concatenate([actual.reshape(-1, 3), np.ones((actual[..., 0].size, 1))], axis=1)
    fit = np.linalg.lstsq(colours, target.reshape(-1, 3), rcond=None)[0]
    contrast = max(float(target.std()), 1.0)
    return rms((colours @ fit).reshape(target.shape) - target, stay) * min(1.0, 50 / contrast)


def grown(region: np.ndarray) -> np.ndarray:
    """The region and its neighbours, so that edges of objects belong to neither side."""
    padded = np.pad(region, 1)
    return np.max([padded[dy : dy + len(region), dx : dx + len(region)] for dy in range(3) for dx in range(3)], axis=0)


def quality_error(
    edit: Edit, actual: np.ndarray, source: np.ndarray, target: np.ndarray, photographs: list[np.ndarray]
) -> float:
    """Root mean square, over positions, of the distance to the nearest clean picture."""
    things = [*edit.source.things, *(t for t in edit.target.things if t not in edit.source.things)]
    covers = [pooled(mask(thing))[..., None] for thing in things]
    own_ground = pooled(background(edit.source, photographs))
    shaded = [own_ground * shade for shade in CLEAN_SHADES]
    grounds = [own_ground, *(pooled(named_background(name)) for name in BACKGROUNDS)]
    colours = [level(*colour) for colour in COLOURS.values()]
    own = [level(*COLOURS[thing.colour]) for thing in things]
    clean = [source, target]
    for ground in [*grounds, *shaded] if not edit.whole else grounds[:1]:
        clean += [ground, *(over(ground, covers, [colour] * len(covers)) for colour in colours)]
    if edit.whole:
        # the asked look on every clean scene, and every other look of this kind on this scene
        looks = TONES if edit.kind == "global" else STYLES
        asked = edit.target.tone or edit.target.style
        scenes = (*clean[2:], *shaded, *(over(ground, covers, own) for ground in (*grounds[1:], *shaded)))
        clean += [look(picture, asked) for picture in scenes]
        clean += [look(source, name) for name in looks if name != asked]
    distances = np.stack([((actual - picture) ** 2).mean(-1) for picture in clean])
    return float(np.sqrt(distances.min(0).mean()))


def over(ground: np.ndarray, covers: list[np.ndarray], colours: list[np.ndarray]) -> np.ndarray:
    """Objects of these colours over a ground."""
    for cover, colour in zip(covers, colours, strict=True):
        ground = ground * (1 - cover) + colour * cover
    return ground


def look(picture: np.ndarray, name: str | None) -> np.ndarray:
    """A pooled picture with a tone or style applied."""
    big = picture.repeat(POOL, 0).repeat(POOL, 1)
    return pooled(tone(big, name) if name in TONES else stylize(big, name))


def following_text(edit: Edit, actual: np.ndarray, source: np.ndarray, asked: np.ndarray, change: float) -> str:
    """Name the failure: nothing changed, or something else happened."""
    subject = f"the {edit.source.things[edit.touched[0]].shape}" if edit.touched else (
        "the background" if edit.kind == "background" else "the picture"
    )  # fmt: skip
    if rms(actual - source, asked) < 0.3 * change:
        if edit.kind == "add":
            return "nothing was added"
        colour = edit.source.things[edit.touched[0]].colour if edit.touched else None
        return f"{subject} stayed {colour}" if edit.kind == "local" else f"{subject} did not change"
    return f"{subject} became something else"


def preserving_text(edit: Edit, actual: np.ndarray, target: np.ndarray, stay: np.ndarray) -> str:
    """Name the object that changed most, or the background if it went dark, or the rest of the picture."""
    untouched = [thing for i, thing in enumerate(edit.source.things) if i not in edit.touched]
    errors = {thing.shape: rms(actual - target, inside(thing)) for thing in untouched}
    if errors and max(errors.values()) > 40:
        return f"the {max(errors, key=lambda shape: errors[shape])} changed"
    ground = stay * np.prod([1 - pooled(mask(thing)) for thing in (*edit.source.things, *edit.target.things)], axis=0)
    lit = target * ground[..., None]
    shade = float((actual * lit).sum() / max(float((target * lit).sum()), 1e-6))
    dark = shade < 0.75 and rms(actual - shade * target, ground) < 0.5 * rms(actual - target, ground)
    return "the background became dark" if dark else "the rest of the picture changed"
