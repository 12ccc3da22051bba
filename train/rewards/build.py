"""`mrc-rewards build`: triplets -> rewards that `mrc-train` reads.

    OUT/replies/    every reply of the model, stored as it arrives: a killed run goes on from there
    OUT/build.json  what OUT was built from

and the files of `results.py`.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from ...core.errors import MRCError
from ...core.files import claim_folder, read_json, write_json
from ...core.locks import locked
from ...judge.batch import judge_all
from ...judge.detached import run_detached
from ...judge.options import add_arguments as add_judge_arguments
from ...judge.options import given_options
from ...judge.questions import VERSION
from ...judge.spending import Spending
from ..data import open_data
from .config import JUDGES, BuildConfig
from .results import Report, write_results
from .scoring import open_config_judge, scorer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="the data to judge, as for mrc-train --data (required)")
    parser.add_argument("--columns", help="columns of the data, as for mrc-train --columns (default: none)")
    parser.add_argument(
        "--out", required=True, help="folder to write; the same command again computes what is missing (required)"
    )
    parser.add_argument(
        "--judge", choices=JUDGES, default="openai",
        help="openai: a model behind a server; oracle: exact and free, for miniature:N (default: %(default)s)",
    )  # fmt: skip
    add_judge_arguments(parser, "--model")
    parser.add_argument("--photographs", help="folder of photographs for miniature:N, as for mrc-train (default: none)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of miniature:N, as for mrc-train (default: %(default)s)"
    )
    parser.add_argument(
        "--ray",
        action="store_true",
        help="judge as a Ray job, on the cluster at RAY_ADDRESS or on this machine (default: no)",
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="processes of the Ray job; they share the limits (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON (default: no)")


def run(args: argparse.Namespace) -> None:
    for package in ("datasets", "pyarrow"):  # needed after the judge was paid
        if find_spec(package) is None:
            raise MRCError(f"mrc-rewards build needs {package}; pip install 'mrc-edit[train,judge]'")
    config = BuildConfig(
        args.data,
        args.out,
        given_options(args),
        args.judge,
        args.columns,
        args.photographs,
        args.seed,
        args.workers if args.ray else None,
        args.json,
    )
    if status := run_detached("mrc_edit.train.rewards", config.to_json()):
        sys.exit(status)


def build(config: BuildConfig, spending: Spending) -> Report:
    """Judge everything and write `config.out`; returns the report.

    Raises:
        MRCError: the data or the judge cannot be used, a limit is reached, or no triplet has all three scores.
    """
    out = Path(config.out)
    with locked(out, inside=True):
        triplets = open_data(config.data, None, config.photographs, config.seed, config.columns)
        judge = open_config_judge(config, triplets, spending)
        claim(out, config)
        if config.ray_workers is None:
            score = scorer(triplets, judge)
            judged = list(judge_all(score, range(len(triplets)), config.options.concurrency, spending))
        else:
            from .cluster import judge_on_ray  # needs ray

            judged = judge_on_ray(config, len(triplets), spending)
        return write_results(out, triplets, judged)


def claim(out: Path, config: BuildConfig) -> None:
    """Write into `out` what this build judges, or check that `out` says the same.

    Raises:
        MRCError: it was built from something else, or is no build.
    """
    model = config.options.judge_model if config.judge == "openai" else None
    asked: dict[str, object] = {"data": config.data, "judge": config.judge, "model": model, "prompts": VERSION}
    if config.columns is not None:
        asked["columns"] = config.columns
    if config.data.startswith("miniature:"):
        asked |= {"seed": config.seed, "photographs": config.photographs}
    path = out / "build.json"
    if not path.is_file():
        claim_folder(out, path.name, "a build")
        write_json(path, asked)
    elif (before := read_json(path, "give another --out")) != asked:
        raise MRCError(f"{out} was built from {before}, this is {asked}; give another --out")
