"""`mrc-edit`: edit images from the command line."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.console import command_parser
from ..core.defaults import Defaults, read_defaults
from ..core.errors import MRCError, run_command
from .arguments import check_seeds
from .backends import BACKENDS, state_of
from .engine import Engine
from .finishing import add_finishing_flags, open_finishing
from .flags import add_edit_flags, add_runtime_flags, edit_options, open_engine
from .images import load_image
from .metadata import read_metadata
from .outputs import FORMATS, Output, check_outputs, check_quality, name_outputs, write
from .parameters import NOT_SETTINGS, check_same, describe_edits, flags_of, read_parameters, text_of
from .provenance import check_signed_formats, source_format
from .request import EditRequest, check_arguments
from .shipped import MODELS
from .sources import check_source, find_sources


def arguments(again: bool = False) -> argparse.ArgumentParser:
    """The parser; `again`: an edit is repeated, and model, images and instruction are those of its file."""
    states = "\n".join(f"  {name:13}{state_of(name)}" for name in BACKENDS)
    released, mini = (describe(defaults) for defaults in (Defaults(), read_defaults(MODELS["mini"] / "checkpoint")))
    parser = command_parser(
        "mrc-edit",
        "Edit images by an instruction.",
        epilog=f"the model's own defaults:\n  as released  {released}\n  mini         {mini}\n\nbackends:\n{states}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        nargs="?" if again else None,
        help="checkpoint (folder or .safetensors file), export folder, mini (the model in the package), or OWNER/NAME "
        "on the Hugging Face hub",
    )
    parser.add_argument(
        "images",
        nargs="*" if again else "+",
        metavar="IMAGE",
        help="image files to edit, patterns of them, or - for standard input",
    )
    if not again:
        parser.add_argument("instruction", help="what to change")
    parser.add_argument(
        "--again",
        type=Path,
        metavar="FILE",
        help="repeat the edit of a PNG that mrc-edit wrote; a given MODEL, IMAGE or flag overrides it (default: none)",
    )
    parser.add_argument(
        "--batch",
        nargs=2,
        metavar=("IN", "OUT"),
        help="edit a folder, a table or tar shards; `mrc-edit --batch --help` explains it (default: none)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="file to write, in the format of its ending; folder for IMAGE-edited.png; or - for standard output "
        "(default: IMAGE-edited.png beside each image)",
    )
    output.add_argument("--format", choices=FORMATS, help="format of files that -o does not name (default: png)")
    output.add_argument(
        "--quality", type=int, metavar="Q", help="quality of JPEG, WebP and AVIF, 1 to 100 (default: 75, 80 and 75)"
    )
    output.add_argument(
        "--overwrite", action="store_true", help="replace files that mrc-edit did not write (default: no)"
    )
    output.add_argument("--json", action="store_true", help="print a JSON line for each edit (default: no)")
    add_finishing_flags(output)
    add_edit_flags(parser)
    add_runtime_flags(parser)
    return parser


def describe(defaults: Defaults) -> str:
    scheduler = defaults.scheduler or "the sampler of its scheduler_config.json"
    guidance = f"guidance {defaults.guidance_scale:g}, image guidance {defaults.image_guidance_scale:g}"
    return f"{defaults.num_inference_steps} steps, {guidance}, {scheduler}"


def edit(args: argparse.Namespace, again: dict[str, Any] | None = None) -> None:
    """Edit all images.

    Args:
        again: the record of the edit that is repeated (`engine.parameters`).
    """
    options = edit_options(args)
    check_arguments(EditRequest(None, args.instruction, **options))  # before the model, which takes long to load
    jobs = prepare(args)
    finishing = open_finishing(args)
    engine: Engine | None = None
    record: dict[str, Any] = {}
    with tqdm(total=len(jobs), desc="edits", unit="edit", disable=None if len(jobs) > 1 else True) as bar:
        for start in range(0, len(jobs), args.batch_size):
            some = jobs[start : start + args.batch_size]
            pictures = [load_image(output.source.image) for output, _ in some]
            metadata = [read_metadata(output.source) for output, _ in some]
            if engine is None:
                engine = open_engine(args)
                if again or any(output.format == "PNG" for output, _ in jobs):
                    record = describe_edits(args, engine, options)
            if again:
                check_same(again, record, [output.source for output, _ in some])
            options["seed"] = [seed for _, seed in some]
            result = engine.edit(pictures, args.instruction, **options)
            for (output, seed), image, carried in zip(some, result.images, metadata, strict=True):
                text = text_of(record, output.source, seed, image.size) if output.format == "PNG" else None
                write(image, output, carried, args.quality, text, finishing)
                report(output.path, seed, image.size, result.timings, args.json)
            bar.update(len(some))


def prepare(args: argparse.Namespace) -> list[tuple[Output, int]]:
    """The edits to make: where each goes, and its seed.

    Raises:
        MRCError: what can be seen to fail before a model is loaded.
    """
    for option, number in (("--num-images", args.num_images), ("--batch-size", args.batch_size)):
        if number < 1:
            raise MRCError(f"{option} is {number}; give a whole number from 1")
    sources = find_sources(args.images)
    named = name_outputs(sources, args.output, args.format, args.num_images)
    outputs = [output for one in named for output in one]
    if args.json and outputs[0].path is None:
        raise MRCError("--json prints to standard output, where the image goes; name a file with -o")
    check_outputs(outputs, args.overwrite)
    check_quality((output.format for output in outputs), args.quality)
    if args.provenance:
        check_signed_formats(output.format for output in outputs)
    for source in sources:
        check_source(source, args.resolution)
        if args.provenance:
            with source.open() as file:
                source_format(file, source.title)
    return list(zip(outputs, each_seed(args.seed, len(sources), args.num_images), strict=True))


def each_seed(first: int | None, images: int, count: int) -> list[int]:
    """Seeds of `count` edits of each image: from `first` on, or random ones."""
    given = None if first is None else [first + i for _ in range(images) for i in range(count)]
    return check_seeds(given, images * count)


def report(path: Path | None, seed: int, size: tuple[int, int], timings: dict[str, float], as_json: bool) -> None:
    """One line an edit; the timings are those of its pass."""
    if as_json:
        line = json.dumps({"output": str(path), "seed": seed, "size": list(size), "seconds": timings})
    else:
        line = f"{path or 'standard output'}: seed {seed}, {sum(timings.values()):.1f} s"
    tqdm.write(line, file=sys.stdout if path else sys.stderr)


def parse(words: list[str]) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """The arguments, and the record of the edit that `--again` repeats: what is not given comes from there."""
    if not any(word.partition("=")[0] == "--again" for word in words):
        return arguments().parse_intermixed_args(words), None
    parser = arguments(again=True)
    given = parser.parse_intermixed_args(words)
    record = read_parameters(given.again)
    flags = flags_of(record, vars(given).keys() - NOT_SETTINGS | {"seed"}, given.again)
    args = parser.parse_intermixed_args([*flags, *words])
    for name in ("lora", "embedding"):  # the parser adds those given to those of the record
        setattr(args, name, getattr(given, name) or getattr(args, name))
    args.model = args.model or Path(record["model"])
    args.images = args.images or [record["image"]]
    args.instruction = record["instruction"]
    args.output = args.output or str(given.again.with_stem(f"{given.again.stem}-again"))
    return args, record


def main() -> None:
    words = sys.argv[1:]
    if any(word.partition("=")[0] == "--batch" for word in words):
        from .batch import command

        command.main(words)
    sys.exit(run_command(lambda: edit(*parse(words))))


if __name__ == "__main__":
    main()
