"""From nothing to an edited photograph: checkpoint → export → edit → before/after picture.

    python -m mrc.demo OUT

The checkpoint is a small one with seeded random weights, so the edit is noise; the way is the
same with a trained one.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from .engine import Engine
from .errors import run_command

PHOTOGRAPH = Path(__file__).resolve().parents[2] / "docs" / "chelsea.jpg"
INSTRUCTION = "turn the cat into a tiger"


def demo(out: Path) -> None:
    from .export.exporter import export
    from .model.checkpoint import save_checkpoint
    from .model.seeded import seeded_checkpoint

    if not (out / "exported" / "manifest.json").is_file():
        save_checkpoint(seeded_checkpoint(), out / "checkpoint")
        export(out / "checkpoint", out / "exported")
    engine = Engine.from_pretrained(out / "exported")
    result = engine.edit(PHOTOGRAPH, INSTRUCTION, resolution=256, seed=0)
    after = result.images[0]
    before = Image.open(PHOTOGRAPH).convert("RGB").resize(after.size)
    pair = Image.new("RGB", (2 * after.width, after.height))
    pair.paste(before, (0, 0))
    pair.paste(after, (after.width, 0))
    pair.save(out / "before_after.png")
    print(f"{out / 'before_after.png'}: {INSTRUCTION!r} in {sum(result.timings.values()):.1f} s")
    print("The weights of this demo are random, so its edit is noise; give mrc-export a trained checkpoint.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mrc.demo", description="Export and edit in one go.")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    sys.exit(run_command(lambda: demo(args.out)))


if __name__ == "__main__":
    main()
