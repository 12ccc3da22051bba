"""`mrc-rewards sheet`: a page for blind A/B rating of two Real-Edit runs, and the table of its answers.

    mrc-rewards sheet RUN OTHER_RUN --out SHEET            writes SHEET/sheet.html and SHEET/key.json
    mrc-rewards sheet --key SHEET/key.json --answers answers.json

The page shows neither an edit's run nor the judge's scores. The key has both: do not give it to the raters.
"""

import argparse
import base64
import hashlib
import html
import io
import json
import random
from pathlib import Path
from string import Template

from ...core.errors import MRCError
from ...core.files import claim_folder, read_json, write_file, write_json
from ...core.paths import file_inside
from ...core.reward import PERSPECTIVES
from ...engine.images import load_image
from .answers import CHOICES, KEY_REMEDY, agreement_table, read_answers
from .runs import read_run

TEMPLATE = Template((Path(__file__).parent / "sheet.html").read_text())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN", help="two OUTs of mrc_edit.bench.quality --real-edit"
    )
    parser.add_argument("--out", type=Path, metavar="SHEET", help="folder for the page and its key (default: none)")
    parser.add_argument("--count", type=int, help="number of edits to show, drawn by the seed (default: all)")
    parser.add_argument(
        "--seed", type=int, default=0, help="decides the order of rows, and left and right (default: %(default)s)"
    )
    parser.add_argument("--key", type=Path, help="key.json of the sheet whose answers to read (default: none)")
    parser.add_argument(
        "--answers", type=Path, nargs="+", metavar="FILE",
        help="files that the page downloaded, one a rater (default: none)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the table of answers as JSON (default: no)")


def run(args: argparse.Namespace) -> None:
    if args.key and args.answers and not args.runs:
        report = read_answers(args.key, args.answers)
        print(json.dumps(report, indent=1) if args.json else agreement_table(report).markdown())
    elif len(args.runs) == 2 and args.out and not args.key and not args.answers:
        print(write_sheet(args.runs[0], args.runs[1], args.out, args.count, args.seed))
    else:
        raise MRCError("give two runs and --out to make a sheet, or --key and --answers to read one back")


def write_sheet(first: Path, second: Path, out: Path, count: int | None = None, seed: int = 0) -> Path:
    """Write `out/sheet.html` and `out/key.json`; returns the page's path.

    Rows, and which run is on the left, are drawn by `seed`.

    Raises:
        MRCError: an unfinished run, runs over different data, a `count` out of range, or an `out` with another sheet.
    """
    results = [read_run(folder) for folder in (first, second)]
    if results[0]["run"]["data"] != results[1]["run"]["data"]:
        raise MRCError(f"{first} and {second} are runs over other data; give two runs over the same")
    runs = [{item["name"]: item for item in one["items"]} for one in results]
    names = sorted(runs[0].keys() & runs[1].keys())  # a run leaves out what it could not edit
    if not names:
        raise MRCError(f"{first} and {second} have no item in common; give two runs over the same")
    if count is not None and not 1 <= count <= len(names):
        raise MRCError(f"--count is {count}; give a number from 1 to {len(names)}")
    chance = random.Random(seed)
    rows, shown = [], []
    for number, name in enumerate(chance.sample(names, count or len(names))):
        items = [one[name] for one in runs]
        edits = [picture(folder, item["edit"]) for folder, item in zip((first, second), items, strict=True)]
        left = chance.choice("AB")
        if left == "B":
            edits.reverse()
        scores = [item["reward"] and item["reward"]["scores"] for item in items]
        rows.append({"name": name, "left": left, "scores": scores})
        shown.append(row_html(number, items[0]["instruction"], picture(first, items[0]["source"]), *edits))
    key: dict = {"A": first.name, "B": second.name, "seed": seed, "rows": rows}
    key["sheet"] = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    key_file = out / "key.json"
    if key_file.is_file() and read_json(key_file, KEY_REMEDY) != key:
        raise MRCError(f"{out} holds another sheet, whose answers need its key; give a new folder")
    claim_folder(out, key_file.name, "a sheet")
    out.mkdir(parents=True, exist_ok=True)
    write_json(key_file, key)
    page = TEMPLATE.substitute(id=key["sheet"], rows="\n".join(shown))
    write_file(out / "sheet.html", page.encode(errors="replace"))  # halves of surrogate pairs, from a run
    return out / "sheet.html"


def picture(run: Path, name: str) -> str:
    """A data URL, lossless: the page must not add artifacts."""
    buffer = io.BytesIO()
    load_image(file_inside(run, name)).save(buffer, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def row_html(number: int, instruction: str, source: str, left: str, right: str) -> str:
    """One row of the page: three pictures and a question a perspective."""
    pictures = {"source": source, "left": left, "right": right}
    figures = "".join(
        f'<figure><img src="{url}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        for caption, url in pictures.items()
    )
    questions = "".join(
        f"<fieldset>{perspective}: "
        + "".join(
            f'<label><input type="radio" name="{number}-{perspective}" value="{choice}">{choice}</label>'
            for choice in CHOICES
        )
        + "</fieldset>"
        for perspective in PERSPECTIVES
    )
    return f"<article><h3>{html.escape(instruction)}</h3>{figures}{questions}</article>"
