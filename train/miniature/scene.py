"""Scenes of the miniature world: up to three objects on a background, drawn at 128×128.

Drawing is a pure function of a `Scene`; images are float32 `[128, 128, 3]` in 0…255.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128
SHAPES = ("circle", "square", "triangle", "star", "heart")
COLOURS = {
    "red": (215, 40, 40),
    "yellow": (240, 205, 50),
    "green": (50, 160, 70),
    "blue": (45, 90, 210),
    "purple": (140, 60, 170),
    "white": (240, 240, 240),
}
PATTERNS = ("striped", "checkered", "dotted")
BACKGROUNDS = ("grass", "bricks", "sand", "sea", "sky", "night sky", "wood")
PLACES = {"left": (26, 64), "right": (102, 64), "top": (64, 26), "bottom": (64, 102), "middle": (64, 64)}
TONES = ("night", "fog", "sunset", "bright", "snow")  # global edits
STYLES = ("sketch", "grey", "sepia", "mosaic", "poster")
TILE = 16  # pixels of a mosaic's side; 8 changed less of a picture than the VAE does


@dataclass(frozen=True)
class Thing:
    """An object: centre and radius in pixels."""

    shape: str
    colour: str
    x: int
    y: int
    radius: int
    pattern: str | None = None


@dataclass(frozen=True)
class Scene:
    """`background` names one of `BACKGROUNDS`, or is "photo" with `crop` = (photograph, x, y, mirrored).

    `shade` is the share of its light that the background keeps; below 1 it is damaged.
    """

    things: tuple[Thing, ...]
    background: str
    crop: tuple[int, int, int, bool] = (0, 0, 0, False)
    tone: str | None = None
    style: str | None = None
    shade: float = 1.0


def level(red: float, green: float, blue: float) -> np.ndarray:
    """A colour, or a factor of each channel, float32 `[3]`."""
    return np.array((red, green, blue), dtype=np.float32)


def mask(thing: Thing) -> np.ndarray:
    """Coverage of each pixel, float32 `[128, 128]` in 0…1."""
    return draw_mask(thing.shape, thing.x, thing.y, thing.radius)


@cache
def unit_outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Outline in a circle of radius 1, y downwards."""
    if shape == "square":
        return ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
    if shape == "triangle":
        return ((0, -1), (0.95, 0.8), (-0.95, 0.8))
    if shape == "star":
        corners = [np.pi * (k / 5 - 0.5) for k in range(10)]
        return tuple((np.cos(a) * (0.45 if k % 2 else 1.05), np.sin(a) * (0.45 if k % 2 else 1.05))
                     for k, a in enumerate(corners))  # fmt: skip
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    if shape == "heart":
        x = np.sin(angles) ** 3
        y = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 16
        return tuple(zip(x.tolist(), y.tolist(), strict=True))
    return tuple(zip(np.cos(angles).tolist(), np.sin(angles).tolist(), strict=True))


def draw_mask(shape: str, x: int, y: int, radius: int) -> np.ndarray:
    """See `mask`."""
    scale = 3  # supersampling
    image = Image.new("L", (SIZE * scale, SIZE * scale))
    points = [((x + radius * u) * scale, (y + radius * v) * scale) for u, v in unit_outline(shape)]
    ImageDraw.Draw(image).polygon(points, fill=255)
    return np.asarray(image.reduce(scale), dtype=np.float32) / 255


@cache
def noise(seed: int, cells: int) -> np.ndarray:
    """Smooth noise `[128, 128]` in 0…1 with `cells` cells a side."""
    coarse = np.random.default_rng(seed).random((cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)).clip(0, 1)


def mix(low: tuple[int, int, int], high: tuple[int, int, int], weight: np.ndarray) -> np.ndarray:
    """From colour `low` at weight 0 to `high` at 1, `[128, 128, 3]` of weights `[128, 128]`."""
    weight = weight[..., None]
    return (np.array(low) * (1 - weight) + np.array(high) * weight).astype(np.float32)


@cache
def named_background(name: str) -> np.ndarray:
    """The one picture of a name, so that an instruction with this name has one right answer."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    match name:
        case "grass":
            return mix((50, 105, 35), (110, 165, 60), 0.5 * noise(1, 32) + 0.5 * noise(2, 8))
        case "bricks":
            row = y // 16
            joint = (y % 16 < 3) | ((x + 16 * (row % 2)) % 32 < 3)
            tint = mix((150, 70, 50), (180, 90, 65), noise(3, 16))
            return np.where(joint[..., None], level(190, 180, 165), tint)
        case "sand":
            return mix((205, 175, 120), (235, 210, 160), 0.5 * noise(4, 24) + 0.5 * (np.sin(y / 6 + x / 30) / 2 + 0.5))
        case "sea":
            return mix((15, 90, 120), (70, 165, 185), np.sin(y / 4 + 3 * noise(5, 4)) * 0.35 + 0.5)
        case "sky":
            return mix((110, 170, 230), (245, 248, 252), ((noise(6, 4) + noise(7, 8)) - 0.7).clip(0, 1))
        case "night sky":
            picture = mix((8, 10, 35), (30, 30, 75), y / SIZE)
            rng = np.random.default_rng(8)
            for cx, cy in rng.integers(4, SIZE - 4, (28, 2)):
                picture += 220 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 4)[..., None]
            return picture.clip(0, 255)
        case _:  # wood
            return mix((120, 75, 40), (175, 120, 70), np.sin(x / 5 + 4 * noise(9, 3)) * 0.5 + 0.5)


def background(scene: Scene, photographs: list[np.ndarray]) -> np.ndarray:
    """The picture without objects, tone, style and shade."""
    if scene.background != "photo":
        return named_background(scene.background)
    index, x, y, mirrored = scene.crop
    crop = photographs[index][y : y + SIZE, x : x + SIZE].astype(np.float32)
    return crop[:, ::-1] if mirrored else crop


def paint(thing: Thing) -> np.ndarray:
    """The object's colour `[3]`, or of a pattern the colours `[128, 128, 3]`, aligned to the grid of 8 pixels."""
    colour = level(*COLOURS[thing.colour])
    if thing.pattern is None:
        return colour
    other = level(60, 60, 60) if thing.colour == "white" else level(240, 240, 240)
    return np.where(second_colour(thing.pattern)[..., None], other, colour)


@cache
def second_colour(pattern: str) -> np.ndarray:
    """Positions of a pattern's second colour, bool `[128, 128]`."""
    y, x = np.mgrid[:SIZE, :SIZE]
    match pattern:
        case "striped":
            return y % 16 >= 8
        case "checkered":
            return (x // 8 + y // 8) % 2 == 1
        case _:  # dotted
            return ((x % 16) - 7.5) ** 2 + ((y % 16) - 7.5) ** 2 < 16


def render(scene: Scene, photographs: list[np.ndarray]) -> np.ndarray:
    """The picture, float32 `[128, 128, 3]` in 0…255."""
    picture = background(scene, photographs) * scene.shade
    for thing in scene.things:
        cover = mask(thing)[..., None]
        picture = picture * (1 - cover) + paint(thing) * cover
    return stylize(tone(picture, scene.tone), scene.style)


def tone(picture: np.ndarray, name: str | None) -> np.ndarray:
    """Global edits: one curve for all pixels, and snow."""
    match name:
        case "night":
            return picture * level(0.25, 0.3, 0.5)
        case "fog":
            return picture * 0.35 + 0.65 * 215
        case "sunset":
            return (picture * level(1.05, 0.65, 0.4) + level(45, 15, 10)).clip(0, 255)
        case "bright":
            return (picture * 1.15 + 50).clip(0, 255)
        case "snow":
            return picture * (1 - snow()) + level(240, 244, 250) * snow()
    return picture


@cache
def snow() -> np.ndarray:
    """Coverage of each pixel, `[128, 128, 1]` in 0…1: a veil that is thicker on the ground, and flakes."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    cover = 0.2 + 0.5 * y / SIZE
    for cx, cy in np.random.default_rng(10).integers(0, SIZE, (90, 2)).tolist():
        cover = np.maximum(cover, np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 5))
    return cover[..., None]


def stylize(picture: np.ndarray, name: str | None) -> np.ndarray:
    """Style edits."""
    grey = (picture @ level(0.299, 0.587, 0.114))[..., None]
    match name:
        case "grey":
            return np.repeat(grey, 3, axis=2)
        case "sepia":
            return (grey * level(1.0, 0.82, 0.6) + level(20, 12, 0)).clip(0, 255)
        case "poster":
            # two colours with a soft step: a hard one would turn differences that no VAE keeps into visible ones
            light = 1 / (1 + np.exp((127 - grey) / 15))
            return level(40, 30, 110) * (1 - light) + level(255, 220, 80) * light
        case "mosaic":
            tiles = picture.reshape(SIZE // TILE, TILE, SIZE // TILE, TILE, 3).mean((1, 3))
            return tiles.repeat(TILE, 0).repeat(TILE, 1)
        case "sketch":
            image = Image.fromarray(grey[..., 0].clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
            soft = np.asarray(image, dtype=np.float32)
            edge = np.hypot(*np.gradient(soft))
            return np.repeat((245 - 9 * edge).clip(20, 245)[..., None], 3, axis=2)
    return picture


def random_scene(rng: np.random.Generator, photographs: list[np.ndarray]) -> Scene:
    """One to three objects of different shapes at different places; six in ten backgrounds are photographs."""
    shapes = rng.permutation(SHAPES)[: rng.choice((1, 2, 3), p=(0.3, 0.45, 0.25))]
    places = rng.permutation(list(PLACES.values()))
    things = tuple(
        Thing(str(shape), str(rng.choice(list(COLOURS))), int(x + rng.integers(-5, 6)), int(y + rng.integers(-5, 6)),
              int(rng.integers(17, 22)), str(rng.choice(PATTERNS)) if rng.random() < 0.15 else None)
        for shape, (x, y) in zip(shapes, places, strict=False)
    )  # fmt: skip
    if rng.random() < 0.4:
        return Scene(things, str(rng.choice(BACKGROUNDS)))
    index = int(rng.integers(len(photographs)))
    height, width = photographs[index].shape[:2]
    x, y = int(rng.integers(width - SIZE + 1)), int(rng.integers(height - SIZE + 1))
    return Scene(things, "photo", (index, x, y, bool(rng.random() < 0.5)))
