"""What the shipped model does: a photograph and three scenes of its own world, before and after.

    python -m mrc_edit.demo OUT

The scenes are drawn by `train/miniature` on backgrounds that no photograph is needed for.
"""

import argparse
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw

from ..core.errors import run_command
from ..engine import Engine
from ..engine.outputs import save
from ..train.miniature.scene import SIZE, Scene, Thing, render
from ..train.miniature.triplets import to_image

PHOTOGRAPH = Path(__file__).parent / "chelsea.jpg"
SCENES = (
    ("make the square checkered", Scene((Thing("square", "red", 64, 64, 21),), "sand")),
    ("add a blue circle on the left", Scene((Thing("heart", "red", 74, 64, 21),), "sea")),
    ("change the background to grass", Scene((Thing("circle", "red", 64, 60, 21),), "sand")),
)
PHOTOGRAPH_INSTRUCTION = "make it look like a sunset"
SHOWN, GAP, CAPTION = 256, 8, 22  # pixels


def demo(out: Path) -> None:
    started = time.perf_counter()
    engine = Engine.from_pretrained("mini")
    edits = [(PHOTOGRAPH_INSTRUCTION, centre(Image.open(PHOTOGRAPH).convert("RGB")))]
    edits += [(instruction, to_image(render(scene, []))) for instruction, scene in SCENES]
    instructions = [instruction for instruction, _ in edits]
    befores = [before for _, before in edits]
    afters = engine.edit(befores, instructions, seed=0).images
    width, height = 2 * SHOWN + 3 * GAP, SHOWN + CAPTION + GAP
    picture = Image.new("RGB", (2 * width, 2 * height), "white")
    draw = ImageDraw.Draw(picture)
    for i, pair in enumerate(zip(befores, afters, strict=True)):
        left, top = i % 2 * width + GAP, i // 2 * height
        draw.text((left, top + 4), instructions[i], fill="black", font_size=15)
        for side, image in enumerate(pair):
            shown = image.resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)
            picture.paste(shown, (left + side * (SHOWN + GAP), top + CAPTION))
    out.mkdir(parents=True, exist_ok=True)
    save(picture, out / "before_after.png")
    print(f"{out / 'before_after.png'}: {len(edits)} edits in {time.perf_counter() - started:.1f} s")


def centre(photograph: Image.Image) -> Image.Image:
    """The middle square at the model's size."""
    side = min(photograph.size)
    left, top = (photograph.width - side) // 2, (photograph.height - side) // 2
    return photograph.resize((SIZE, SIZE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mrc_edit.demo", description="Edit four pictures with mini.")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    sys.exit(run_command(lambda: demo(args.out)))


if __name__ == "__main__":
    main()
