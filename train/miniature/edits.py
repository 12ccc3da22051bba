"""Edits of the miniature world: an instruction, the scene it asks for, and the faults of an imperfect editor."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from ...core.kinds import KINDS
from .scene import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    PLACES,
    SHAPES,
    SIZE,
    STYLES,
    TONES,
    Scene,
    Thing,
    level,
    random_scene,
    render,
)  # fmt: skip

WORDS = {
    "recolour": ("make the {it} {new}", "turn the {it} {new}", "paint the {it} {new}",
                 "change the colour of the {it} to {new}"),
    "reshape": ("turn the {it} into a {new}", "replace the {it} with a {new}", "change the {it} to a {new}"),
    "remove": ("remove the {it}", "delete the {it}", "take the {it} away", "erase the {it}"),
    "add": ("add a {new} {where}", "put a {new} {where}", "place a {new} {where}"),
    "texture": ("make the {it} {new}", "give the {it} a {new} pattern", "turn the {it} {new}"),
    "background": ("change the background to {new}", "replace the background with {new}",
                   "use {new} as the background"),
    "night": ("make it night", "turn day into night", "make the picture dark like at night"),
    "fog": ("add fog", "make it foggy", "cover the scene in fog"),
    "sunset": ("make it look like a sunset", "give it warm sunset light", "make it sunset"),
    "bright": ("make it brighter", "brighten the picture", "add more light"),
    "snow": ("make it snow", "add snow", "cover the scene in snow"),
    "sketch": ("turn it into a pencil sketch", "make it a pencil drawing", "draw it as a sketch"),
    "grey": ("make it black and white", "turn it into a black and white photo", "remove all colour"),
    "sepia": ("make it look like an old sepia photo", "turn it into a sepia photo", "make it sepia"),
    "mosaic": ("turn it into a mosaic", "make it a mosaic", "make it look like pixel art"),
    "poster": ("turn it into a poster", "make it look like pop art", "make it a pop art poster"),
}  # fmt: skip
PLACE_WORDS = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
               "middle": "in the middle"}  # fmt: skip
ADDED_RADIUS = 19
# Probability that a training example fails in each perspective, about as often as generated data fail
FAILS_FOLLOWING, FAILS_PRESERVING, FAILS_QUALITY = 0.45, 0.35, 0.25
SHADES = (0.5, 0.7)  # share of its light that a damaged background keeps
FILM = level(200, 0, 255)  # purple, an artifact over the whole picture
FILM_SHARES = (0.2, 0.35)  # share of the light that the film takes


@dataclass(frozen=True)
class Edit:
    """An instruction, and the scene before and after. `touched` are the indices of `source.things` that may change."""

    kind: str
    instruction: str
    source: Scene
    target: Scene
    touched: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every pixel may change."""
        return self.kind in ("global", "style")


def random_edit(rng: np.random.Generator, photographs: list[np.ndarray], kind: str | None = None) -> Edit:
    """An edit of a new scene, with a visible change; the kind is drawn evenly unless it is given."""
    kind = kind or str(rng.choice(KINDS))
    while True:
        edit = ask(rng, random_scene(rng, photographs), kind)
        change = np.abs(render(edit.target, photographs) - render(edit.source, photographs)).mean(-1)
        if (change > 20).sum() >= 200:  # leaves out a white star on snow
            return edit


def ask(rng: np.random.Generator, scene: Scene, kind: str) -> Edit:
    """A random instruction of `kind` about `scene`."""
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    name = f"{thing.colour} {thing.shape}" if rng.random() < 0.3 else thing.shape

    def phrase(change: str, **values: str) -> str:
        return str(rng.choice(WORDS[change])).format(it=name, **values)

    def changed(new: Thing) -> Scene:
        return replace(scene, things=tuple(new if t is thing else t for t in scene.things))

    match kind:
        case "local" if rng.random() < 0.6:
            colour = other(rng, COLOURS, thing.colour)
            return Edit(kind, phrase("recolour", new=colour), scene, changed(replace(thing, colour=colour)), (index,))
        case "local":
            shape = other(rng, SHAPES, *(t.shape for t in scene.things))
            return Edit(kind, phrase("reshape", new=shape), scene, changed(replace(thing, shape=shape)), (index,))
        case "remove":
            others = tuple(t for t in scene.things if t is not thing)
            return Edit(kind, phrase("remove"), scene, replace(scene, things=others), (index,))
        case "add":
            where = free_place(rng, scene)
            colour, shape = str(rng.choice(list(COLOURS))), other(rng, SHAPES, *(t.shape for t in scene.things))
            new = Thing(shape, colour, *PLACES[where], ADDED_RADIUS)
            text = phrase("add", new=f"{colour} {shape}", where=PLACE_WORDS[where])
            return Edit(kind, text, scene, replace(scene, things=(*scene.things, new)))
        case "texture":
            pattern = other(rng, PATTERNS, thing.pattern)
            return Edit(kind, phrase("texture", new=pattern), scene, changed(replace(thing, pattern=pattern)), (index,))
        case "background":
            new_background = other(rng, BACKGROUNDS, scene.background)
            text = phrase("background", new=("the " if new_background in ("sea", "sky", "night sky") else "")
                       + new_background)  # fmt: skip
            return Edit(kind, text, scene, replace(scene, background=new_background))
        case "global":
            tone = str(rng.choice(TONES))
            return Edit(kind, phrase(tone), scene, replace(scene, tone=tone))
    style = str(rng.choice(STYLES))
    return Edit(kind, phrase(style), scene, replace(scene, style=style))


def other(rng: np.random.Generator, choices: Iterable[str], *taken: str | None) -> str:
    """One of `choices` that is not taken."""
    return str(rng.choice([choice for choice in choices if choice not in taken]))


def free_place(rng: np.random.Generator, scene: Scene) -> str:
    """A named place without an object; objects cover at most three of the five."""
    free = [name for name, (x, y) in PLACES.items() if all(np.hypot(t.x - x, t.y - y) > 20 for t in scene.things)]
    return str(rng.choice(free))


def imperfect(rng: np.random.Generator, edit: Edit, photographs: list[np.ndarray]) -> np.ndarray:
    """The edited picture of a training example, float32 `[128, 128, 3]` in 0…255, often with faults."""
    result = edit.target
    if rng.random() < FAILS_FOLLOWING:
        # half do nothing, half do something else of the same kind
        result = edit.source if rng.random() < 0.5 else ask(rng, edit.source, edit.kind).target
    if rng.random() < FAILS_PRESERVING:
        result = damage(rng, edit, result)
    picture = render(result, photographs)
    if rng.random() < FAILS_QUALITY:
        picture = artifacts(rng, picture)
    return picture


def damage(rng: np.random.Generator, edit: Edit, result: Scene) -> Scene:
    """Change what should stay: an object vanishes, or the background goes dark if the edit is not about it.

    Each fault always looks the same. A one-step model would learn the average of random faults, which is a fault of
    its own. Edits of the whole picture are not damaged.
    """
    if edit.whole:
        return result
    untouched = [t for i, t in enumerate(edit.source.things) if i not in edit.touched and t in result.things]
    about_background = edit.kind in ("remove", "background")
    if untouched and (about_background or rng.random() < 0.3):
        victim = untouched[int(rng.integers(len(untouched)))]
        return replace(result, things=tuple(t for t in result.things if t is not victim))
    return result if about_background else replace(result, shade=rng.uniform(*SHADES))


def artifacts(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """A purple film over the picture, noise in cells of 8 pixels, or coloured blotches.

    All are coarse enough to survive the VAE. The film is the same at every position, so a convolution can draw it,
    and lowers quality alone; the others also hide what should change or stay.
    """
    if rng.random() < 0.6:
        return under_film(picture, rng.uniform(*FILM_SHARES))
    if rng.random() < 0.5:
        strength = rng.uniform(40, 90)
        cells = rng.normal(0, strength, (SIZE // 8, SIZE // 8, 3))
        return (picture + cells.repeat(8, 0).repeat(8, 1)).clip(0, 255).astype(np.float32)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(8, 24))):
        x, y, r = int(rng.integers(SIZE)), int(rng.integers(SIZE)), int(rng.integers(5, 10))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=((255, 0, 255), (0, 255, 255), (255, 120, 0))[rng.integers(3)])
    return np.asarray(image, dtype=np.float32)


def under_film(picture: np.ndarray, share: float) -> np.ndarray:
    """The picture behind `FILM`, which takes `share` of the light."""
    return picture * (1 - share) + FILM * share
