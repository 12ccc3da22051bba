"""The worker process of `mrc-rewards build`; its one argument is a BuildConfig as JSON."""

import json
import sys

from ...core.errors import run_command
from ...judge.detached import stop_with_parent
from .build import build
from .config import BuildConfig


def main() -> None:
    config = BuildConfig.from_json(sys.argv[1])
    spending = config.options.spending()
    stop_with_parent(spending)
    try:
        report = build(config, spending)
    finally:
        if spending.requests:
            print(f"this run: {spending.requests:,} requests, {spending.tokens:,} tokens", file=sys.stderr)
    if config.as_json:
        print(json.dumps(report))
        return
    print("{triplets} triplets: {complete} complete, {incomplete} incomplete, {unreadable} unreadable".format(**report))
    for perspective, row in report["perspectives"].items():
        print(f"{perspective}: mean {row['mean']} of {row['scored']}, {row['failed']} failed")
    print(f"{report['tokens']:,} tokens in all; see {config.out}/report.json")


sys.exit(run_command(main))
