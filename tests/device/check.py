#!/usr/bin/env python3
"""All that one call on a machine with a GPU can tell about this project, in stages of which none stops the others.

    python3 tests/device/check.py --budget 570

Each stage is a process of its own with a time limit; its results are in $OUT/results.json as soon as it ends. The exit
status is 1 when a stage failed. `MRC_DRY=1` runs what a CPU can, with a tiny model, to try the script. docs/gpu.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from stages import STAGES
from stages.report import Report
from stages.settings import DRY, OUT, ROOT, WORK, lay_out_package, make_importable
from stages.summary import summary

RESULTS: dict[str, dict] = {}
BEGAN = time.perf_counter()
FIRST = ("env", "build", "checkpoint")  # which the other stages need


def run_stages(names: list[str], folder: Path, limit: float) -> int:
    """Run stages in this process, each with its report in `folder`; 1 when one failed."""
    failed = 0
    for name in names:
        report, start = Report(folder / f"{name}.json"), time.perf_counter()
        try:
            getattr(import_module(f"stages.{STAGES[name].module}"), name)(report, limit)
        except BaseException as error:
            traceback.print_exc()
            report.fail(f"{type(error).__name__}: {error}"[:500])
        report.put("seconds", round(time.perf_counter() - start, 1))
        failed |= "failures" in report
    return failed


@dataclass
class Running:
    """A process that runs stages."""

    names: list[str]
    process: subprocess.Popen
    log: Path
    deadline: float


def start(names: list[str], left: float) -> Running:
    limit = left if DRY else min(left, sum(STAGES[name].limit for name in names))  # a CPU may be slow
    for name in names:
        (WORK / f"{name}.json").unlink(missing_ok=True)
    log = WORK / f"{names[0]}.log"
    site = ["-S"] if sys.flags.no_site else []  # as this process was started
    command = [sys.executable, *site, __file__, "--stage", ",".join(names), "--results", str(WORK)]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--limit", str(limit)], stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
        )
    return Running(names, process, log, time.perf_counter() + limit)


def finish(running: Running) -> None:
    """Wait until the process ends or its time is over, and add its results."""
    late = False
    try:
        running.process.wait(max(0.1, running.deadline - time.perf_counter()))
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(running.process.pid, signal.SIGKILL)  # its own children too
        running.process.wait()
    text = running.log.read_text(errors="replace")
    code = running.process.returncode
    for name in running.names:
        path = WORK / f"{name}.json"
        report = json.loads(path.read_text()) if path.is_file() else {}
        whole = "seconds" in report and "failures" not in report
        state = "ok" if whole else "late" if late and "seconds" not in report else "failed"
        RESULTS[name] = {"state": state, "rc": code, **report}
        print(f"[{time.perf_counter() - BEGAN:6.1f} s] {name}: {state} in {report.get('seconds', '?')} s", flush=True)
    if any(RESULTS[name]["state"] != "ok" for name in running.names):
        print("\n".join(text.strip().splitlines()[-12:]), flush=True)
    (OUT / "results.json").write_text(json.dumps(RESULTS, indent=1, default=str))
    with (OUT / "logs.txt").open("a") as logs:
        logs.write(f"\n\n===== {', '.join(running.names)} rc={code} late={late}\n{text[-200_000:]}")


def conduct(budget: float, wanted: list[str]) -> None:
    """Run the stages: `build` and `checkpoint` beside `env`, all others one after another.

    Side by side they take longer: importing and compiling want every core.
    """
    for folder in (OUT, WORK):
        folder.mkdir(parents=True, exist_ok=True)
    lay_out_package()

    def left() -> float:
        return budget - (time.perf_counter() - BEGAN) - 5

    first = [start([name], left()) for name in FIRST if name in wanted]
    for running in first:
        finish(running)
    rest = [name for name in wanted if name not in FIRST]
    # dry, importing takes most of the time
    for names in [rest] if DRY and rest else [[name] for name in rest]:
        if left() < 15:
            print(f"no time for {', '.join(names)}", flush=True)
            RESULTS.update((name, {"state": "skipped: no time left"}) for name in names)
        else:
            finish(start(names, left()))


def stage_names(text: str) -> list[str]:
    names = text.split(",") if text else [name for name, stage in STAGES.items() if stage.dry or not DRY]
    if unknown := [name for name in names if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"unknown stages {', '.join(unknown)}; choose from {', '.join(STAGES)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=560, help="seconds for all stages (default 560)")
    stages = f"stages by comma (default all): {', '.join(STAGES)}"
    parser.add_argument("--only", type=stage_names, default="", help=stages)
    parser.add_argument("--stage", type=stage_names, help="run these stages in this process; for the script's own use")
    parser.add_argument("--results", type=Path, default=WORK, help="with --stage: folder of its results")
    parser.add_argument("--limit", type=float, default=60, help="with --stage: seconds it may take")
    args = parser.parse_args()
    make_importable()
    if args.stage:
        args.results.mkdir(parents=True, exist_ok=True)
        return run_stages(args.stage, args.results, args.limit)
    conduct(args.budget, sorted(args.only, key=list(STAGES).index))
    text = summary(RESULTS)
    (OUT / "report.txt").write_text(text + "\n")
    print(f"\n{text}", flush=True)
    return int(any(entry["state"] in ("failed", "late") for entry in RESULTS.values()))


if __name__ == "__main__":
    sys.exit(main())
